"""Weights of the Hugging Face hub, against a stand-in for the hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from safmn import load_network, weights
from safmn.cli import main
from safmn.errors import WeightsError
from safmn.weights import hub, zoo

COMMIT = "c0ffee" + "0" * 34
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs: pip install -r tests/requirements-extras.txt"
)


class StandIn(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub about models; ``files`` are those of each repository."""

    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]]

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main", path):
            if match[1] in self.files:
                files = self.files[match[1]].items()
                tree = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in files]
                return self._answer(200, json.dumps(tree).encode())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path):
            content = self.files.get(match[1], {}).get(match[2])
            if content is not None:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self._answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)
            if match[1] in self.files:
                return self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.files.setdefault(f"{asked['organization']}/{asked['name']}", {})
            return self._answer(200, b'{"url": "https://huggingface.co/me/net"}')
        if self.path == "/api/validate-yaml":
            return self._answer(200, b'{"errors": [], "warnings": []}')
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            named = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, json.dumps({"files": named}).encode())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path.split("?")[0]):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"https://huggingface.co/{match[1]}/commit/{COMMIT}"
            return self._answer(200, json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())
        return self._answer(404, b"{}")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    """The repositories of a hub that answers on this machine."""
    held: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (StandIn,), {"files": held})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "a-token")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield held
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:me/net", ("me/net", None, None)),
        ("hf:me/net/x4/a b.safetensors", ("me/net", "x4/a b.safetensors", None)),
        ("hf:me/net@v1.0", ("me/net", None, "v1.0")),
        ("hf:me/net/a.pth@refs/pr/1", ("me/net", "a.pth", "refs/pr/1")),
    ],
)
def test_an_address_has_parts(text: str, expected: tuple[str, str | None, str | None]) -> None:
    assert hub.parse(text) == expected
    assert str(hub.parse(text)) == text


@pytest.mark.parametrize("text", ["hf:", "hf:net", "hf:/net", "hf:me/net@", "me/net"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="expected hf:owner/name"):
        hub.parse(text)


def test_without_the_package_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--weights", "hf:me/net"]) == 2
    assert "pip install 'huggingface-hub>=0.30'" in capsys.readouterr().err


def test_a_card_is_written_without_a_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "push", "safmn-x4", "hf:me/net", "--folder", str(tmp_path / "out")]) == 0
    assert "nothing was published" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-sa-4.0"
    assert "| Parameters | 239,520 |" in body
    assert re.search(r"\| Set5 \| 32\.0\d\d\d \| 0\.89\d\d \|", body)
    assert "safmn upscale photo.png -o out --weights hf:me/net\n" in body
    ours, theirs = (weights.load_state_dict(source) for source in ("safmn-x4", tmp_path / "out" / "model.safetensors"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_weights_without_a_licence_are_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.save_weights(tmp_path / "a.pth", params=load_network("safmn-x2").state_dict())
    assert main(["zoo", "push", str(tmp_path / "a.pth"), "hf:me/net", "--folder", str(tmp_path / "out")]) == 2
    assert "--licence" in capsys.readouterr().err
    arguments = ["--folder", str(tmp_path / "out"), "--licence", "My own | licence"]
    assert main(["zoo", "push", str(tmp_path / "a.pth"), "hf:me/net", *arguments]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1]) | {"license": "other", "license_name": "My own | licence"}
    assert "| Network | SAFMN dim=36" in text


@needs_hub
def test_published_weights_are_found_again(files: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    assert main(["zoo", "push", "safmn-x2", "hf:me/net"]) == 0
    assert set(files["me/net"]) == {"README.md", "model.safetensors"}
    network = load_network("hf:me/net")
    ours = load_network("safmn-x2").state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in network.state_dict().items())
    assert load_network("hf:me/net/model.safetensors@main").scale == 2  # type: ignore[union-attr]


@needs_hub
def test_mistakes_are_named(files: dict[str, dict[str, bytes]]) -> None:
    content = zoo.path("safmn-x2").read_bytes()
    files["me/two"] = {"a.safetensors": content, "b.safetensors": content, "c.pth": b""}
    files["me/none"] = {"README.md": b""}
    for text, expected in (
        ("hf:me/absent", "no such repository"),
        ("hf:me/absent/a.safetensors", "no such repository"),
        ("hf:me/two/d.safetensors", "no such file"),
        ("hf:me/two", "name the file.*a.safetensors, b.safetensors, c.pth"),
        ("hf:me/none", "weight files there: none"),
    ):
        with pytest.raises(WeightsError, match=expected):
            load_network(text)
    assert load_network("hf:me/two/b.safetensors").scale == 2  # type: ignore[union-attr]


@needs_hub
def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for text in ("hf:me/net/a.safetensors", "hf:me/net"):
        with pytest.raises(WeightsError, match=r"cannot be reached.*give its path"):
            load_network(text)
