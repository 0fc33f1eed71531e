"""The server of docs/upscaling.md, run exactly as printed there, returns to each client its own image."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from check_threads import images
from conftest import REPOSITORY
from PIL import Image

from safmn import Upscaler

pytest.importorskip("httpx", reason="the server's test needs httpx")
pytest.importorskip("multipart", reason="uploads need python-multipart")
testclient = pytest.importorskip("fastapi.testclient", reason="the server needs fastapi")

CLIENTS, REQUESTS = 20, 60


@pytest.fixture(scope="module")
def server() -> dict[str, Any]:
    """Return the global names of the document's program."""
    text = (REPOSITORY / "docs" / "upscaling.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## In a server.*?```python\n(.*?)```", text, flags=re.DOTALL)
    defined: dict[str, Any] = {"__name__": "server"}
    exec(compile(code, "docs/upscaling.md", "exec", dont_inherit=True), defined)
    return defined


@pytest.fixture(scope="module")
def client(server: dict[str, Any]) -> Any:
    with testclient.TestClient(server["app"]) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_twenty_clients_get_their_own_images(client: Any) -> None:
    pictures = images(REQUESTS)
    alone = Upscaler("safmn-x2", device="cpu", backend="eager")
    expected = [alone(picture).astype(int) for picture in pictures]

    def ask(picture: np.ndarray) -> np.ndarray:
        answer = client.post("/upscale", files={"file": ("a.png", png(picture), "image/png")})
        assert answer.status_code == 200
        return np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)

    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(ask, pictures))
    assert [result.shape for result in results] == [picture.shape for picture in expected]
    assert sum(np.abs(a - b).max() <= 1 for a, b in zip(results, expected, strict=True)) == REQUESTS


def test_damaged_large_and_missing_uploads_are_refused(
    client: Any, server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(content: bytes) -> int:
        return int(client.post("/upscale", files={"file": ("a.png", content)}).status_code)

    picture = png(images(1)[0])
    assert status(picture) == 200
    assert status(b"no image") == 422
    assert status(picture[:200]) == 422
    for limit in ("MAX_PIXELS", "MAX_BYTES"):  # each alone, since both give the same status
        with monkeypatch.context() as patch:
            patch.setitem(server, limit, 100)
            assert status(picture) == 413, limit
    assert client.post("/upscale").status_code == 422
