"""Show image files in Chromium and read back every frame from a canvas, in sRGB and upright."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_TYPES = {"jpg": "jpeg", "jpeg": "jpeg", "apng": "png", "jfif": "jpeg"}
_MOVING = ("gif", "webp", "png", "avif")

_PAGE = """<!DOCTYPE html><html><body><script>
const files = FILES;
const pixels = (source, width, height) => {
  const canvas = document.createElement('canvas');
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext('2d', {colorSpace: 'srgb', willReadFrequently: true});
  context.drawImage(source, 0, 0);
  return canvas.toDataURL('image/png');
};
const still = async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  return [pixels(image, image.naturalWidth, image.naturalHeight)];
};
const moving = async (url, type) => {
  const data = await (await fetch(url)).arrayBuffer();
  const decoder = new ImageDecoder({data, type});
  await decoder.tracks.ready;
  const count = decoder.tracks.selectedTrack.frameCount;
  if (count < 2) return null;
  const shown = [];
  for (let frameIndex = 0; frameIndex < count; frameIndex++) {
    const {image} = await decoder.decode({frameIndex});
    shown.push(pixels(image, image.displayWidth, image.displayHeight));
    image.close();
  }
  return shown;
};
(async () => {
  const answers = [];
  for (const [url, type, perhaps] of files) {
    const late = new Promise((_, refuse) => setTimeout(() => refuse('no answer in time'), 10000));
    const look = async () => (perhaps && await moving(url, type)) || await still(url);
    try { answers.push(await Promise.race([look(), late])); } catch (error) { answers.push(String(error)); }
  }
  await fetch('/answers', {method: 'POST', body: JSON.stringify(answers)});
})();
</script></body></html>"""


class _Site(ThreadingHTTPServer):
    """A local web server with a page that shows the files and posts back their pixels."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths = paths
        self.answers: list[Any] = []
        self.done = threading.Event()

    def page(self) -> bytes:
        files = []
        for index, path in enumerate(self.paths):
            kind = _TYPES.get(path.suffix[1:].lower(), path.suffix[1:].lower())
            files.append([f"/{index}", f"image/{kind}", kind in _MOVING])
        return _PAGE.replace("FILES", json.dumps(files)).encode()


class _Handler(BaseHTTPRequestHandler):
    server: _Site

    def do_GET(self) -> None:
        place = self.path.strip("/")
        content = self.server.paths[int(place)].read_bytes() if place.isdigit() else self.server.page()
        self.send_response(200)
        if not place.isdigit():
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.server.answers = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def shown(paths: Sequence[Path], work: Path) -> list[list[Array] | str]:
    """Return, for each file, its frames, uint8 (H, W, 4) with straight alpha, or Chromium's error message."""
    site = _Site(paths)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
    command += ["--force-device-scale-factor=1", f"--user-data-dir={work / 'browser'}", "--remote-debugging-port=0"]
    address = f"http://127.0.0.1:{site.server_address[1]}/"
    with subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        site.done.wait(300)
        browser.terminate()
    site.shutdown()
    site.server_close()
    assert len(site.answers) == len(paths), "Chromium did not answer"
    return [answer if isinstance(answer, str) else [_pixels(url) for url in answer] for answer in site.answers]


def _pixels(url: str) -> Array:
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def on_grounds(frame: Array) -> Array:
    """Return a frame on black and on white, float (2, H, W, 3), which shows both colours and alpha."""
    alpha = frame[..., 3:].astype(float) / 255
    colours = frame[..., :3] * alpha
    return np.stack([colours, colours + 255 * (1 - alpha)])
