"""The page of docs/browser in headless Chromium: its numbers are onnxruntime's, in tiles as in one piece."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import browser
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from serve_page import Isolated
from skimage import data
from torch import nn

import safmn
from safmn.inference.export import export_network
from safmn.registry import ARCH_REGISTRY, build

PAGE = Path(__file__).resolve().parent.parent / "docs" / "browser"
RUNTIME = Path(os.environ.get("SAFMN_ORT_WEB", PAGE / "node_modules" / "onnxruntime-web" / "dist"))
"""The folder ``dist`` of the npm package onnxruntime-web."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(
        not (RUNTIME / "ort.webgpu.min.mjs").is_file(),
        reason=f"no onnxruntime-web at {RUNTIME}: npm install it, and set SAFMN_ORT_WEB to its folder dist",
    ),
]
TOLERANCE = 5e-6
"""Between WebAssembly and onnxruntime, of values in [0, 1]."""

NUMBERS = """<!DOCTYPE html><script type="module">
import { load, upscale } from "./upscale.js";
const post = (address, body) => fetch(address, { method: "POST", body });
try {
  const get = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  const notes = [];
  const runtime = new URL("runtime/", location.href).href;
  const network = await load(await get("model.onnx"), runtime, DEVICE, (note) => notes.push(note));
  const planes = new Float32Array((await get("planes")).buffer);
  for (const side of SIDES) {
    const calls = [];
    const made = await upscale(network, planes, WIDTH, HEIGHT, side, (...call) => calls.push(call));
    await post(`made/${side}`, made);
    await post(`calls/${side}`, JSON.stringify(calls));
  }
  const { scale, window, halo, device } = network;
  await post("done", JSON.stringify({ scale, window, halo, device, notes, threads: network.ort.env.wasm.numThreads }));
} catch (error) { await post("done", JSON.stringify({ error: String(error.stack) })); }
</script>"""

DROP = """<script type="module">
const post = (address, body) => fetch(address, { method: "POST", body });
const until = async (condition) => { while (!condition()) await new Promise((again) => setTimeout(again, 20)); };
const notes = () => [...document.querySelectorAll("#notes li")].map((line) => line.textContent);
const problem = () => document.querySelector("#notes .error");
await until(() => !document.getElementById("file").disabled || problem());
const before = notes();
if (!problem()) {
  const transfer = new DataTransfer();
  transfer.items.add(new File([await (await fetch("photo.png")).blob()], "photo.png", { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
  const link = document.getElementById("download");
  await until(() => !link.hidden || problem());
  if (!problem()) await post("made", await (await fetch(link.href)).blob());
  await post("done", JSON.stringify({ before, after: notes(), name: link.download }));
} else await post("done", JSON.stringify({ before }));
</script>"""


class Site(ThreadingHTTPServer):
    """A folder, isolated from other origins, whose pages send back what they made."""

    def __init__(self, folder: Path, handler: type[Isolated]) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        self.folder = folder
        self.answers: dict[str, bytes] = {}
        self.done = threading.Event()

    def visit(self, page: str, *flags: str) -> dict[str, Any]:
        """Open a page and wait until it is done."""
        command = [str(browser.CHROMIUM), "--headless", "--no-sandbox", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={self.folder}/.profile", *(flags or ["--disable-gpu"])]
        address = f"http://127.0.0.1:{self.server_address[1]}/{page}"
        with subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            self.done.wait(240)
            process.terminate()
        assert "done" in self.answers, "Chromium did not answer"
        told: dict[str, Any] = json.loads(self.answers["done"])
        assert "error" not in told, told["error"]
        return told


class Handler(Isolated):
    server: Site

    def do_POST(self) -> None:
        place = self.path.lstrip("/")
        self.server.answers[place] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        if place == "done":
            self.server.done.set()

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


class WithoutThreads(Handler):
    def send_header(self, keyword: str, value: str) -> None:
        if not keyword.startswith("Cross-Origin"):
            super().send_header(keyword, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page with onnxruntime-web."""
    shutil.copytree(PAGE, tmp_path / "site", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "site" / "runtime").symlink_to(RUNTIME)
    return tmp_path / "site"


@pytest.fixture
def site(folder: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    server = Site(folder, getattr(request, "param", Handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def photo(width: int, height: int) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:height, :width])


def by_onnxruntime(file: Path, image: np.ndarray) -> np.ndarray:
    """(h, w, 3) of 8 bits to planes of floats, clamped."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"input": (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]})
    return made[0].clip(0, 1)


def numbers(site: Site, image: np.ndarray, sides: list[int], device: str, *flags: str) -> dict[str, Any]:
    """What the page's module makes of an image with each limit for the side of a tile."""
    height, width = image.shape[:2]
    (site.folder / "planes").write_bytes((image.astype(np.float32) / 255).transpose(2, 0, 1).tobytes())
    page = NUMBERS.replace("WIDTH", str(width)).replace("HEIGHT", str(height))
    page = page.replace("SIDES", str(sides)).replace("DEVICE", json.dumps(device))
    (site.folder / "numbers.html").write_text(page)
    told = site.visit("numbers.html", *flags)
    scale = told["scale"]
    for side in sides:
        planes = np.frombuffer(site.answers[f"made/{side}"], np.float32).reshape(3, height * scale, width * scale)
        told[side] = planes, json.loads(site.answers[f"calls/{side}"])
    return told


def small() -> nn.Module:
    """A network with a halo of 18 pixels, whose results lie in [0, 1]."""
    torch.manual_seed(0)
    network = build(ARCH_REGISTRY, {"type": "SAFMN", "dim": 24, "n_blocks": 1, "upscaling_factor": 2}).eval()
    network.to_img[0].bias.data += 0.5
    return network.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "size", "side", "tiles"),
    [(None, (91, 77), 64, 6 * 5), ("safmn-x2", (317, 37), 296, 14)],
)
def test_webassembly_is_onnxruntime_in_tiles_as_in_one_piece(
    name: str | None, size: tuple[int, int], side: int, tiles: int, site: Site
) -> None:
    """Tiles of 16 and 24 pixels of photographs whose sides are no multiples of the window."""
    file, image = site.folder / "model.onnx", photo(*size)
    export_network(safmn.load_network(name) if name else small(), file)
    told = numbers(site, image, [1000, side], "wasm")
    assert (told["scale"], told["window"], told["halo"], told["notes"]) == (2, 8, 136 if name else 24, [])
    assert told["threads"] == min(os.cpu_count() or 1, 8)
    expected = by_onnxruntime(file, image)
    assert 0.2 < float(expected.mean()) < 0.8
    whole, calls = told[1000]
    assert calls == [[1, 1]]
    assert float(np.abs(whole - expected).max()) <= TOLERANCE
    tiled, calls = told[side]
    assert calls == [[done + 1, tiles] for done in range(tiles)]
    assert float(np.abs(tiled - whole).max()) <= TOLERANCE


def test_networks_that_see_the_whole_image_are_not_tiled(site: Site, weights_dir: Path) -> None:
    file = site.folder / "model.onnx"
    export_network(safmn.load_network(weights_dir / "safmnv3_x4.pth"), file)
    image = photo(61, 45)
    told = numbers(site, image, [16], "wasm")
    assert told["halo"] is None
    made, calls = told[16]
    assert calls == [[1, 1]]
    assert float(np.abs(made - by_onnxruntime(file, image)).max()) <= TOLERANCE


def test_webgpu_on_a_software_adapter(site: Site) -> None:
    file = site.folder / "model.onnx"
    export_network(small(), file)
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    told = numbers(site, photo(37, 29), [640], "auto", *flags, "--use-vulkan=swiftshader", "--ignore-gpu-blocklist")
    if told["device"] != "WebGPU":
        pytest.skip(f"this Chromium has no software adapter: {told['notes']}")
    assert told["notes"] == []
    assert float(np.abs(told[640][0] - by_onnxruntime(file, photo(37, 29))).max()) <= 1e-5


@pytest.mark.parametrize("site", [WithoutThreads], indirect=True)
def test_without_the_headers_it_says_so_and_uses_one_thread(site: Site) -> None:
    file = site.folder / "model.onnx"
    export_network(safmn.load_network("safmn-x2"), file)
    told = numbers(site, photo(40, 30), [640], "wasm")
    assert told["threads"] == 1
    assert "Cross-Origin-Opener-Policy" in told["notes"][0]
    assert float(np.abs(told[640][0] - by_onnxruntime(file, photo(40, 30))).max()) <= TOLERANCE


def test_a_dropped_image_comes_back_as_a_download(site: Site) -> None:
    """The page itself, from the drop to the PNG file; without WebGPU it says that WebAssembly is used."""
    export_network(safmn.load_network("safmn-x2"), site.folder / "safmn-x2.onnx")
    image = photo(157, 93)
    Image.fromarray(image).save(site.folder / "photo.png")
    page = (site.folder / "index.html").read_text(encoding="utf-8").replace("</body>", f"{DROP}</body>")
    (site.folder / "driven.html").write_text(page, encoding="utf-8")
    told = site.visit("driven.html?runtime=runtime/")
    assert told["before"][0] == "WebAssembly is used: this browser offers no WebGPU here"
    assert told["before"][1].startswith("Ready: x2, WebAssembly, threads: ")
    assert told["before"][1].endswith("tiles with 136 pixels around them.")
    assert told["name"] == "photo_safmn.png"
    assert told["after"][-1].startswith("Done in ")
    made = np.asarray(Image.open(io.BytesIO(site.answers["made"])).convert("RGB"))
    expected = (by_onnxruntime(site.folder / "safmn-x2.onnx", image) * 255).round().transpose(1, 2, 0)
    difference = np.abs(made.astype(int) - expected.astype(int))
    assert int(difference.max()) <= 1
    assert float((difference > 0).mean()) < 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"safmn-x2.onnx: the server answers 404. Write the file with safmn export."),
        (b"<html>", "this is no .onnx file"),
        (b"", "the model says no scale: write it with safmn export"),
    ],
)
def test_a_missing_or_wrong_model_is_said(content: bytes | None, message: str, site: Site) -> None:
    if content is not None:
        (site.folder / "safmn-x2.onnx").write_bytes(content)
    page = (site.folder / "index.html").read_text(encoding="utf-8").replace("</body>", f"{DROP}</body>")
    (site.folder / "driven.html").write_text(page, encoding="utf-8")
    assert message in site.visit("driven.html?runtime=runtime/")["before"][-1]
