"use strict";
// Versions of one image: a before/after slider over two of them, and all of them side by side with the same zoom.
// A single version has no slider.
class Compare {
  constructor(figure) {
    this.figure = figure;
    this.data = dataOf(figure);
    this.left = this.data.before;
    this.right = this.data.after;
    this.single = this.data.views.length < 2;
    this.split = 0.5;
    this.zoom = 1;
    this.centre = [0.5, 0.5]; // of the visible part, relative to the image
    this.iterations = [...new Set(this.data.views.flatMap((view) => view.steps.map((step) => step[0])))].filter(Boolean).sort((a, b) => a - b);
    this.iteration = this.iterations[this.iterations.length - 1] ?? 0;
    this.build();
    if (this.data.begin) this.detail();
    this.update();
    new ResizeObserver(() => this.place()).observe(this.stage);
  }

  build() {
    const { views, width, height, title } = this.data;
    const choose = (label, side) => {
      const options = views.map((view, index) => element("option", { value: String(index), selected: index === this[side] }, view.label));
      const select = element("select", { "aria-label": `${label} of ${title}` }, ...options);
      select.addEventListener("change", () => {
        this[side] = Number(select.value);
        this.update();
      });
      return element("label", {}, label, select);
    };
    const button = (text, name, action) => {
      const made = element("button", { type: "button", "aria-label": `${name}: ${title}`, title: name }, text);
      made.addEventListener("click", () => {
        action();
        this.place();
      });
      return made;
    };
    const controls = element("div", { class: "controls" }, ...(this.single ? [] : [choose("Left", "left"), choose("Right", "right")]));
    if (this.iterations.length > 1) {
      const last = this.iterations.length - 1;
      this.output = element("output");
      const range = element("input", { type: "range", min: "0", max: String(last), step: "1", value: String(last), class: "time" });
      range.addEventListener("input", () => {
        this.iteration = this.iterations[Number(range.value)];
        this.update();
      });
      controls.append(element("label", {}, "Iteration", range, this.output));
    }
    controls.append(
      element(
        "span", {},
        button("−", "Smaller", () => this.magnify(1 / 1.5)), " ",
        button("+", "Larger", () => this.magnify(1.5)), " ",
        button("Whole", "The whole image", () => this.magnify(0)), " ",
        ...(this.data.detail ? [button("Detail", "The part that differs most", () => this.detail())] : []),
      ),
    );
    this.stage = element("div", { class: "stage", tabindex: "0", role: "group" });
    const arrows = this.single ? "" : "arrow keys move the border between both versions, with Shift the visible part; ";
    this.stage.setAttribute("aria-label", `${title}: ${arrows}+ and - zoom`);
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.style.width = `min(100%, ${Math.round((Math.max(width, 560) * Math.min(1, 620 / height / (Math.max(width, 560) / width))))}px)`;
    this.images = [element("img", { alt: "" }), element("img", { alt: "" })];
    this.over = element("div", { class: "over" }, this.images[1]);
    this.bar = element("div", { class: "bar" });
    this.tags = [element("div", { class: "tag left" }), element("div", { class: "tag right" })];
    this.stage.append(this.images[0], this.over, this.bar, ...this.tags);
    this.slider = element("input", { type: "range", class: "split", min: "0", max: "1000", value: "500", "aria-label": `Border between both versions of ${title}` });
    this.slider.addEventListener("input", () => {
      this.split = this.slider.value / 1000;
      this.place();
    });
    this.panes = views.map((view) => {
      const image = element("img", { alt: `${title}: ${view.label}` });
      const window = element("div", {}, image);
      window.style.aspectRatio = `${width} / ${height}`;
      const caption = element("p", {}, view.label, element("small"));
      return { image, window, caption, box: element("div", { class: "pane" }, window, caption) };
    });
    this.row = element("div", { class: "stage-row" }, this.stage);
    this.figure.classList.toggle("single", this.single);
    this.figure.append(controls, this.row, this.slider, element("div", { class: "panes" }, ...this.panes.map((pane) => pane.box)));
    this.listen(this.stage, true);
    this.panes.forEach((pane) => this.listen(pane.window, false));
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  // The newest version of a view that is not newer than the chosen iteration, or its only one.
  stepOf(view) {
    const steps = view.steps.filter((step) => step[0] <= this.iteration);
    return steps[steps.length - 1] ?? view.steps[0];
  }

  update() {
    const show = (image, view) => {
      const [, key] = this.stepOf(view);
      if (image.dataset.key !== key) {
        image.src = images[key];
        image.dataset.key = key;
      }
      image.classList.toggle("pixelated", view.pixelated);
    };
    const { views } = this.data;
    [this.left, this.right].forEach((index, side) => {
      show(this.images[side], views[index]);
      this.images[side].alt = views[index].label;
      this.tags[side].textContent = views[index].label;
    });
    this.panes.forEach((pane, index) => {
      const [step, , score] = this.stepOf(views[index]);
      show(pane.image, views[index]);
      pane.caption.querySelector("small").textContent = [score, step && this.iterations.length > 1 ? `iteration ${step.toLocaleString("en")}` : ""].filter(Boolean).join(", ");
    });
    if (this.output) this.output.value = this.iteration.toLocaleString("en");
    this.place();
  }

  place() {
    const half = 0.5 / this.zoom;
    this.centre = this.centre.map((value) => Math.min(Math.max(value, half), 1 - half));
    const [x, y] = this.centre.map((value) => (value - half) * -100 * this.zoom);
    const transform = `translate(${x}%, ${y}%) scale(${this.zoom})`;
    for (const image of [...this.images, ...this.panes.map((pane) => pane.image)]) image.style.transform = transform;
    this.over.style.clipPath = `inset(0 0 0 ${this.split * 100}%)`;
    this.bar.style.left = `${this.split * 100}%`;
    this.slider.value = String(Math.round(this.split * 1000));
    this.stage.classList.toggle("zoomed", this.zoom > 1);
    const magnified = (this.stage.clientWidth * this.zoom) / this.data.width;
    this.figure.classList.toggle("pixels", magnified > 3);
    this.slider.style.width = `${this.stage.clientWidth}px`;
    this.slider.style.display = this.single ? "none" : "block";
    this.slider.style.marginInline = "auto";
  }

  magnify(factor, towards = this.centre) {
    const before = this.zoom;
    this.zoom = factor === 0 ? 1 : Math.min(Math.max(this.zoom * factor, 1), 32);
    this.centre = this.centre.map((value, axis) => towards[axis] + ((value - towards[axis]) * before) / this.zoom);
  }

  detail() {
    const { detail, width, height } = this.data;
    if (!detail) return;
    const [x, y, w, h] = detail;
    this.zoom = Math.min(width / w, height / h);
    this.centre = [(x + w / 2) / width, (y + h / 2) / height];
  }

  listen(area, isStage) {
    let last = null;
    let moves = "";
    const place = (event) => {
      const box = area.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    area.addEventListener("pointerdown", (event) => {
      last = place(event);
      const atBar = Math.abs(last[0] - this.split) * area.clientWidth < 24;
      moves = isStage && !this.single && (this.zoom === 1 || atBar) ? "split" : "part";
      area.setPointerCapture(event.pointerId);
      if (moves === "split") {
        this.split = Math.min(Math.max(last[0], 0), 1);
        this.place();
      }
    });
    area.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const now = place(event);
      if (moves === "split") this.split = Math.min(Math.max(now[0], 0), 1);
      else this.centre = this.centre.map((value, axis) => value - (now[axis] - last[axis]) / this.zoom);
      last = now;
      this.place();
    });
    for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, () => (last = null));
    area.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== this.stage) return; // otherwise the page scrolls
      event.preventDefault();
      const half = 0.5 / this.zoom;
      const towards = place(event).map((value, axis) => this.centre[axis] - half + value * 2 * half);
      this.magnify(event.deltaY < 0 ? 1.2 : 1 / 1.2, towards);
      this.place();
    }, { passive: false });
    area.addEventListener("dblclick", (event) => {
      const half = 0.5 / this.zoom;
      const towards = place(event).map((value, axis) => this.centre[axis] - half + value * 2 * half);
      this.magnify(this.zoom > 1 ? 0 : 4, towards);
      this.place();
    });
  }

  key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move && event.shiftKey) this.centre = this.centre.map((value, axis) => value + (0.1 * move[axis]) / this.zoom);
    else if (move && move[0]) this.split = Math.min(Math.max(this.split + 0.02 * move[0], 0), 1);
    else if (event.key === "+" || event.key === "=") this.magnify(1.5);
    else if (event.key === "-") this.magnify(1 / 1.5);
    else if (event.key === "0") this.magnify(0);
    else return;
    event.preventDefault();
    this.place();
  }
}

document.querySelectorAll("figure.compare").forEach((figure) => new Compare(figure));
