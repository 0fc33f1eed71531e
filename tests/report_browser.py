"""Open a report in Chromium, use it as a visitor does, and return what it showed."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import browser
import cv2
import numpy as np

_VISIT = """<!DOCTYPE html><meta charset="utf-8"><iframe src="REPORT" width="1200" height="900"></iframe><script>
const told = { errors: [] };
const pause = (time = 60) => new Promise((again) => setTimeout(again, time));
const frame = document.querySelector("iframe");
const send = () => fetch("done", { method: "POST", body: JSON.stringify(told) });
frame.onload = async () => { try {
  const page = frame.contentDocument, view = frame.contentWindow;
  view.addEventListener("error", (event) => told.errors.push(String(event.message)));
  page.addEventListener("securitypolicyviolation", (event) => told.errors.push(event.blockedURI));
  await pause(200);
  const named = (figure, name) => figure.querySelector("figcaption").textContent === name;
  const chart = [...page.querySelectorAll("figure.chart")].find((each) => named(each, "l_pix"));
  const lines = () => chart.querySelectorAll("path:not(.raw)").length;
  const press = (target, key, more = {}) =>
    target.dispatchEvent(new view.KeyboardEvent("keydown", { key, bubbles: true, ...more }));
  const use = (input, value, kind = "input") => { input.value = value; input.dispatchEvent(new view.Event(kind)); };
  const drawn = () => chart.querySelector("path:not(.raw)").getAttribute("d");
  told.smoothing = [drawn()];
  use(page.getElementById("smoothing"), "0");
  told.smoothing.push(drawn());
  for (let i = 0; i < 3; i++) press(chart, "ArrowRight");
  told.hover = chart.querySelector(".tip").textContent;
  told.curves = [lines()];
  page.querySelector("[data-series='1']").click();
  told.curves.push(lines());
  const figure = page.querySelector("figure.compare");
  const [bar, over, stage] = [".bar", ".over", ".stage"].map((name) => figure.querySelector(name));
  told.split = [bar.style.left];
  use(figure.querySelector(".split"), "250");
  told.split.push(bar.style.left, over.style.clipPath);
  const pictures = () => [...figure.querySelectorAll("img")];
  const scale = () => Number(/scale\\(([\\d.]+)\\)/.exec(pictures()[0].style.transform)[1]);
  told.zoomed = [scale()];
  press(stage, "+");
  press(stage, "ArrowRight", { shiftKey: true });
  told.zoomed.push(scale());
  told.transforms = [...new Set(pictures().map((each) => each.style.transform))];
  press(stage, "0");
  told.zoomed.push(scale());
  const time = figure.querySelector("input.time"), output = figure.querySelector("output");
  const before = pictures()[1].src;
  told.steps = [output.value];
  use(time, "0");
  told.steps.push(output.value);
  await pause();
  told.changed = before !== pictures()[1].src && pictures().every((each) => each.naturalWidth > 0);
  const table = [...page.querySelectorAll("table")].find((each) => each.tHead.textContent.startsWith("imagepsnr"));
  table.querySelectorAll("thead button")[1].click();
  told.sorted = [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value));
  told.overflow = [page.documentElement.scrollWidth - page.documentElement.clientWidth];
  frame.width = 400;
  await pause(200);
  told.overflow.push(page.documentElement.scrollWidth - page.documentElement.clientWidth);
  const theme = () => page.documentElement.dataset.theme ?? "";
  told.theme = [theme()];
  for (let i = 0; i < 3; i++) {
    page.getElementById("theme").click();
    told.theme.push(theme());
  }
  const loaded = view.performance.getEntriesByType("resource").map((each) => each.name);
  told.requests = loaded.filter((name) => !name.startsWith("data:"));
} catch (error) { told.errors.push(String(error.stack)); } await send(); };
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    told: dict[str, Any]

    def do_POST(self) -> None:
        server: Any = self.server
        server.told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        server.done.set()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def visit(folder: Path, name: str) -> dict[str, Any]:
    """Use the report of a folder and return what it showed."""
    (folder / "visit.html").write_text(_VISIT.replace("REPORT", name), encoding="utf-8")
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    server.done = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [str(browser.CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder / 'browser'}", f"http://127.0.0.1:{server.server_address[1]}/visit.html"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        answered = server.done.wait(120)
        process.terminate()
    server.shutdown()
    server.server_close()
    assert answered, "Chromium did not answer"
    told: dict[str, Any] = server.told
    return told


def pixels(address: str) -> np.ndarray:
    """Decode an embedded image to uint8 (H, W, 3) RGB."""
    content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
