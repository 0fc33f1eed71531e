"use strict";
// Line charts in SVG over iterations, with one smoothing, one scale and one range of iterations for all of them.
const charts = { smoothing: 0.6, log: false, range: null };
const svgNamespace = "http://www.w3.org/2000/svg";

function shape(name, attributes, parent) {
  const made = document.createElementNS(svgNamespace, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

// Exponential mean from the first point on, without its pull to zero (as TensorBoard smooths); null is a gap.
function smoothed(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null || weight === 0) return value;
    sum = sum * weight + value * (1 - weight);
    total = total * weight + (1 - weight);
    return sum / total;
  });
}

function steps(low, high, count) {
  const rough = (high - low) / count || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(Math.round(tick / step) * step || 0);
  return { found, step };
}

function logSteps(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
    for (const digit of high - low < 2.5 ? [1, 2, 5] : [1]) {
      const tick = power + Math.log10(digit);
      if (tick >= low - 1e-9 && tick <= high + 1e-9) found.push(tick);
    }
  }
  return found.length > 1 ? found : [low, high];
}

// A number in words: with as many digits as the step between ticks needs, or six.
function shown(value, step = 0) {
  if (value === null) return "not finite";
  if (!step) {
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(3);
    return String(Number(value.toPrecision(6)));
  }
  if (value === 0) return "0";
  if (step < 5e-4 || Math.abs(value) >= 1e7) return String(Number(value.toPrecision(3)).toExponential());
  const decimals = [0, 1, 2, 3, 4, 5].find((count) => Math.abs(step - Number(step.toFixed(count))) < step * 1e-6) ?? 5;
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

const colour = (series) => `var(--c${series % 8})`;
const dashes = (series) => ["", "6 3", "2 3", "8 3 2 3"][Math.floor(series / 8) % 4] || "";

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.data = dataOf(figure);
    this.plot = figure.querySelector(".plot");
    this.at = null; // iteration under the cross hair
    this.tip = element("div", { class: "tip", hidden: true, role: "status" });
    figure.append(this.tip);
    figure.setAttribute("role", "group");
    figure.setAttribute("aria-label", `Chart: ${this.data.title}. Arrow keys read values.`);
    redraws.push(() => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.plot);
    figure.addEventListener("keydown", (event) => this.key(event));
    figure.addEventListener("blur", () => this.leave());
  }

  curves() {
    const weight = this.data.noisy ? charts.smoothing : 0;
    return this.data.curves
      .filter((curve) => !hidden.has(curve.series))
      .map((curve) => ({ ...curve, smooth: smoothed(curve.y, weight), raw: weight > 0 && curve.x.length > 2 }));
  }

  draw() {
    const width = Math.max(this.plot.clientWidth, 200);
    const height = 240;
    const curves = this.curves();
    const log = charts.log && this.data.noisy;
    const level = (value) => (value === null || (log && value <= 0) ? null : log ? Math.log10(value) : value);
    const every = curves.flatMap((curve) => curve.x);
    let [x0, x1] = charts.range ?? [Math.min(...extent(every)), Math.max(...extent(every))];
    if (!every.length) [x0, x1] = [0, 1];
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    const [y0, y1] = this.limits(curves, level, x0, x1);
    const ticks = log ? { found: logSteps(y0, y1), step: 0 } : steps(y0, y1, 5);
    const labels = ticks.found.map((tick) => (log ? shown(Number((10 ** tick).toPrecision(3))) : shown(tick, ticks.step)));
    const left = 14 + 6.6 * Math.max(...labels.map((label) => label.length), 3);
    const frame = { left, right: width - 12, top: 8, bottom: height - 26 };
    const px = (x) => frame.left + ((x - x0) / (x1 - x0)) * (frame.right - frame.left);
    const py = (y) => frame.bottom - ((y - y0) / (y1 - y0)) * (frame.bottom - frame.top);
    this.view = { frame, px, py, level, x0, x1, curves };

    const svg = document.createElementNS(svgNamespace, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    ticks.found.forEach((tick, index) => {
      shape("line", { class: "grid", x1: frame.left, x2: frame.right, y1: py(tick), y2: py(tick) }, svg);
      shape("text", { x: frame.left - 6, y: py(tick) + 4, "text-anchor": "end" }, svg).textContent = labels[index];
    });
    const below = steps(x0, x1, Math.max(2, Math.floor(width / 110)));
    for (const tick of below.found.filter((each) => Number.isInteger(each))) {
      const label = tick.toLocaleString("en");
      const last = width - label.length * 3.5; // its centre, so that a label at the right edge is not cut off
      shape("text", { x: Math.min(px(tick), last), y: height - 8, "text-anchor": "middle" }, svg).textContent = label;
    }
    const id = `clip${redraws.length}-${Math.random().toString(36).slice(2)}`;
    const clip = shape("clipPath", { id }, shape("defs", {}, svg));
    shape("rect", { x: frame.left - 3, y: 0, width: frame.right - frame.left + 6, height: frame.bottom + 3 }, clip);
    const inside = shape("g", { "clip-path": `url(#${id})` }, svg);
    for (const curve of curves) {
      const line = (values) => this.path(curve.x, values.map(level), px, py);
      const look = { stroke: colour(curve.series), "stroke-dasharray": dashes(curve.series) };
      if (curve.raw) shape("path", { ...look, class: "raw", d: line(curve.y) }, inside);
      shape("path", { ...look, d: line(curve.smooth) }, inside);
      if (curve.x.length <= 40) {
        curve.smooth.map(level).forEach((y, i) => {
          if (y !== null) shape("circle", { cx: px(curve.x[i]), cy: py(y), r: 3, fill: colour(curve.series) }, inside);
        });
      }
    }
    for (const [series, x] of this.data.marks) {
      if (!hidden.has(series)) shape("path", { d: `M${px(x)} ${frame.bottom}l-4 8h8z`, style: `fill:${colour(series)}` }, inside);
    }
    const empty = !curves.length ? "Every run is hidden" : curves.every((curve) => curve.y.every((value) => value === null)) ? "No finite value" : "";
    if (empty) shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg).textContent = empty;
    this.overlay = shape("g", {}, svg);
    this.listen(svg, width);
    this.plot.replaceChildren(svg);
    if (this.at !== null) this.point(this.at);
  }

  limits(curves, level, x0, x1) {
    const within = curves.flatMap((curve) =>
      (curve.raw && curve.x.length < 200 ? curve.y : curve.smooth).filter((_, i) => curve.x[i] >= x0 && curve.x[i] <= x1),
    );
    const values = within.map(level).filter((value) => value !== null).sort((a, b) => a - b);
    if (!values.length) return [0, 1];
    const cut = values.length > 400 ? Math.floor(values.length / 400) : 0; // single peaks do not flatten the rest
    let [low, high] = [values[0], values[values.length - 1 - cut]];
    if (low === high) [low, high] = [low - (Math.abs(low) * 0.05 || 1), high + (Math.abs(high) * 0.05 || 1)];
    const room = (high - low) * 0.06;
    return [low - (low >= 0 && low - room < 0 && !charts.log ? low : room), high + room];
  }

  path(xs, ys, px, py) {
    let pen = "M";
    let drawn = "";
    ys.forEach((y, i) => {
      if (y === null) pen = "M";
      else {
        drawn += `${pen}${px(xs[i]).toFixed(1)} ${py(y).toFixed(1)}`;
        pen = "L";
      }
    });
    return drawn;
  }

  listen(svg, width) {
    const iteration = (event) => {
      const box = svg.getBoundingClientRect();
      const { frame, x0, x1 } = this.view;
      const at = ((event.clientX - box.left) * width) / box.width;
      return x0 + ((at - frame.left) / (frame.right - frame.left)) * (x1 - x0);
    };
    let from = null;
    svg.addEventListener("pointerdown", (event) => {
      from = event.pointerType === "touch" ? null : iteration(event);
    });
    svg.addEventListener("pointermove", (event) => {
      const to = iteration(event);
      this.point(to);
      if (from !== null && event.buttons) {
        const { frame, px } = this.view;
        const [a, b] = [px(from), px(to)].sort((one, other) => one - other);
        shape("rect", { class: "band", x: a, width: b - a, y: frame.top, height: frame.bottom - frame.top }, this.overlay);
      }
    });
    svg.addEventListener("pointerup", (event) => {
      const to = iteration(event);
      if (from !== null && Math.abs(this.view.px(to) - this.view.px(from)) > 8) setRange([from, to].sort((a, b) => a - b));
      from = null;
    });
    svg.addEventListener("pointerleave", () => this.leave());
    svg.addEventListener("dblclick", () => setRange(null));
  }

  leave() {
    this.at = null;
    this.tip.hidden = true;
    this.overlay?.replaceChildren();
  }

  key(event) {
    const every = [...new Set(this.curves().flatMap((curve) => curve.x))].sort((a, b) => a - b);
    const visible = charts.range ? every.filter((x) => x >= charts.range[0] && x <= charts.range[1]) : every;
    const now = visible.findIndex((x) => x >= (this.at ?? -Infinity));
    const moves = { ArrowLeft: now - 1, ArrowRight: this.at === null ? 0 : now + 1, Home: 0, End: visible.length - 1 };
    if (event.key === "Escape") this.leave();
    else if (event.key in moves && visible.length) {
      event.preventDefault();
      this.point(visible[Math.min(Math.max(moves[event.key], 0), visible.length - 1)]);
    }
  }

  // Show the values of every curve nearest to an iteration.
  point(iteration) {
    const { frame, px, py, level, curves } = this.view;
    this.overlay.replaceChildren();
    const all = curves.flatMap((curve) => curve.x);
    if (!all.length) return;
    const nearest = all.reduce((best, x) => (Math.abs(x - iteration) < Math.abs(best - iteration) ? x : best), all[0]);
    this.at = nearest;
    shape("line", { class: "cross", x1: px(nearest), x2: px(nearest), y1: frame.top, y2: frame.bottom }, this.overlay);
    const lines = [];
    for (const curve of curves) {
      const i = curve.x.indexOf(nearest);
      if (i < 0) continue;
      const y = level(curve.smooth[i]);
      if (y !== null) shape("circle", { cx: px(nearest), cy: py(y), r: 4, fill: colour(curve.series) }, this.overlay);
      const unit = this.data.unit ? ` ${this.data.unit}` : "";
      const text = curve.raw ? `${shown(curve.y[i])} (smooth ${shown(curve.smooth[i])})${unit}` : `${shown(curve.y[i])}${unit}`;
      lines.push(element("span", { style: `--c:${colour(curve.series)}` }, element("i"), seriesNames[curve.series], element("em", {}, text)));
    }
    this.tip.replaceChildren(element("b", {}, `Iteration ${nearest.toLocaleString("en")}`), ...lines);
    this.tip.hidden = false;
    const room = this.figure.clientWidth - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(0, Math.min(px(nearest) + 14, room))}px`;
    if (px(nearest) + 14 > room) this.tip.style.left = `${Math.max(0, px(nearest) - this.tip.offsetWidth - 14)}px`;
    this.tip.style.top = `${this.plot.offsetTop + 12}px`;
  }
}

// Smallest and largest value; Math.min(...values) fails with very many.
function extent(values) {
  return values.length ? values.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]) : [0, 1];
}

function setRange(range) {
  charts.range = range;
  const button = document.getElementById("whole-range");
  if (button) button.disabled = range === null;
  redraw();
}

document.querySelectorAll("figure.chart").forEach((figure) => new Chart(figure));
document.getElementById("whole-range")?.addEventListener("click", () => setRange(null));
document.getElementById("log")?.addEventListener("change", (event) => {
  charts.log = event.target.checked;
  redraw();
});
document.getElementById("smoothing")?.addEventListener("input", (event) => {
  charts.smoothing = Number(event.target.value);
  document.getElementById("smoothing-value").value = charts.smoothing.toFixed(2);
  redraw();
});
addEventListener("beforeprint", redraw);
