"""What ``auto`` found out is remembered, and tried again when something that it depends on has changed."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import safmn
from safmn.archs import SAFMN
from safmn.inference.backends import auto, make_backend, remembered
from safmn.inference.backends.base import Backend
from safmn.inference.backends.remembered import Answer, recall, remember

QUESTION: dict[str, Any] = {"torch": "1", "threads": 2}
ANSWER = Answer("openvino", 2.5, ("Back end native failed and is not used: OSError: no disk",))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SAFMN(dim=8, n_blocks=1, upscaling_factor=2).eval().requires_grad_(False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path)
    return tmp_path / "backends"


@pytest.fixture
def tried(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often each search ran; the only candidate is the network itself, and always fast."""
    monkeypatch.setattr(auto, "candidates_of_auto", lambda device_type: (Quick,))
    searches: list[str] = []
    search = auto._tried

    def counted(*arguments: Any, **keywords: Any) -> Any:
        searches.append("search")
        backend, answer, lasting = search(*arguments, **keywords)
        if answer.backend != "quick":  # the machine was busy with other work while it was timed
            backend = Quick(arguments[1], **keywords)
        return backend, Answer("quick", 3.0), lasting

    monkeypatch.setattr(auto, "_tried", counted)
    return searches


class Quick(Backend):
    """The network."""

    name = "quick"
    version = "quick 1.0"
    makes: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str) -> None:
        super().__init__(network, device=device, precision=precision)
        type(self).makes()
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.network(x)
        return y

    @classmethod
    def versions(cls) -> tuple[str, ...]:
        return (cls.version,)


def chosen(module: nn.Module, side: int = 64, precision: str = "fp32") -> str:
    backend = make_backend("auto", module, precision=precision)
    backend(torch.rand(1, 3, side, side))
    return backend.name


def test_the_second_run_tries_nothing_and_says_so(tried: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "safmn.backend"):
        for _ in range(3):
            assert chosen(network()) == "quick"  # a new object with the same weights each time
    assert len(tried) == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "safmn.backend"]
    line = "Back end quick, fp32: 3.0 times as fast as eager"
    assert lines == [f"{line}.", f"{line}, as an earlier run found.", f"{line}, as an earlier run found."]


def threads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "get_num_threads", lambda: 77)


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(safmn, "__version__", "9.9"),
        lambda patch: patch.setattr(torch, "__version__", "9.9"),
        lambda patch: patch.setattr(Quick, "version", "quick 2.0"),
        lambda patch: patch.setattr(remembered, "processor", lambda: "another processor"),
        lambda patch: patch.setattr(remembered, "_own_files", lambda: "edited"),
        lambda patch: patch.setattr(auto, "candidates_of_auto", lambda device_type: (Quick, auto.Eager)),
        threads,
    ],
    ids=["safmn", "torch", "back end", "processor", "files of ours", "candidates", "threads"],
)
def test_a_change_is_tried(
    change: Callable[[pytest.MonkeyPatch], None], tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(network())
    with monkeypatch.context() as patch:
        change(patch)
        chosen(network())
        assert len(tried) == 2
        chosen(network())
    chosen(network())
    assert len(tried) == 2  # both are remembered


def test_other_weights_networks_precisions_and_tiny_images_are_tried(tried: list[str]) -> None:
    chosen(network())
    changed = network()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    chosen(changed)
    chosen(SAFMN(dim=8, n_blocks=2, upscaling_factor=2).eval())
    chosen(network(), precision="bf16")
    chosen(network(), side=32)
    assert len(tried) == 5
    chosen(network(), side=72)
    assert len(tried) == 5


def test_a_network_whose_code_changed_is_tried(
    tried: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor in (1.0, 2.0):
        (tmp_path / "mine.py").write_text(
            "import torch\nclass Mine(torch.nn.Conv2d):\n    scale = 1\n"
            f"    def forward(self, x):\n        return super().forward(x) * {factor}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        importlib.invalidate_caches()
        module = importlib.import_module("mine")
        torch.manual_seed(0)
        chosen(module.Mine(3, 3, 1).eval())
        for compiled in tmp_path.glob("__pycache__/mine*"):
            compiled.unlink()
    assert len(tried) == 2


def test_what_can_no_longer_be_made_is_tried_again(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen(network())
    calls = iter([RuntimeError("driver is gone")])

    def fail() -> None:
        for error in calls:
            raise error

    monkeypatch.setattr(Quick, "makes", staticmethod(fail))
    assert chosen(network()) == "quick"
    assert "Back end quick failed and is not used: RuntimeError: driver is gone" in caplog.text
    assert len(tried) == 2
    monkeypatch.setattr(Quick, "missing", classmethod(lambda cls, device: "uninstalled"))
    chosen(network())
    assert len(tried) == 3


def test_warnings_are_repeated_with_the_file_to_delete(
    tried: list[str], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen(network())
    (file,) = cache.iterdir()
    content = json.loads(file.read_text())
    content["answer"]["warnings"] = ["Back end native failed and is not used: OSError: no compiler"]
    file.write_text(json.dumps(content))
    chosen(network())
    assert f"OSError: no compiler (found in an earlier run; to try again, delete {file})" in caplog.text


def test_an_answer_comes_back(cache: Path) -> None:
    assert recall(QUESTION) is None
    remember(QUESTION, ANSWER)
    assert recall(QUESTION) == ANSWER
    assert recall(QUESTION | {"threads": 3}) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"question": {"torch": "1", "threads": 2}}',
        b'{"question": {"torch": "1", "threads": 2}, "answer": null}',
        b'{"question": {"torch": "1", "threads": 2}, "answer": {"backend": "x", "times": "fast", "warnings": []}}',
        b'{"question": {"torch": "1", "threads": 2}, "answer": {"backend": "x", "times": 1, "warnings": 3}}',
        b'{"question": {"torch": "2", "threads": 2}, "answer": {"backend": "x", "times": 1, "warnings": []}}',
        b"[" * 60000,
        b'{"question": "' + b"x" * 2**17,
    ],
)
def test_a_damaged_file_is_no_answer(content: bytes, cache: Path, tried: list[str]) -> None:
    remember(QUESTION, ANSWER)
    remembered.file_of(QUESTION).write_bytes(content)
    assert recall(QUESTION) is None
    remember(QUESTION, ANSWER)
    assert recall(QUESTION) == ANSWER
    chosen(network())
    for file in cache.iterdir():
        file.write_bytes(content)
    assert chosen(network()) == "quick"
    assert len(tried) == 2


def test_an_unknown_back_end_in_the_file_is_no_answer(cache: Path, tried: list[str]) -> None:
    chosen(network())
    (file,) = cache.iterdir()
    file.write_text(file.read_text().replace('"backend": "quick"', '"backend": "slow"'))
    assert chosen(network()) == "quick"
    assert len(tried) == 2


def test_a_cache_that_cannot_be_written_breaks_nothing(
    tmp_path: Path, tried: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path / "file")
    with caplog.at_level(logging.INFO):
        assert [chosen(network()) for _ in range(2)] == ["quick", "quick"]
    assert len(tried) == 2
    assert "cannot be kept for the next run" in caplog.text


def test_only_so_many_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST", 3)
    questions = [QUESTION | {"threads": number} for number in range(5)]
    for number, asked in enumerate(questions):
        remember(asked, ANSWER)
        os.utime(remembered.file_of(asked), (number, number))
    assert [recall(asked) is not None for asked in questions] == [False, False, True, True, True]


def test_a_search_under_memory_pressure_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(auto, "candidates_of_auto", lambda device_type: (Quick,))
    monkeypatch.setattr(Quick, "makes", staticmethod(fail))
    assert chosen(network()) == "eager"
    assert not cache.exists()


def test_weights_that_give_no_numbers_are_not_kept(cache: Path) -> None:
    broken = network()
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    assert chosen(broken) == "eager"
    assert not cache.exists()


def test_weights_without_plain_values_are_tried_each_time(tried: list[str], cache: Path) -> None:
    sparse = network()
    sparse.register_buffer("mask", torch.eye(3).to_sparse())
    assert [chosen(sparse) for _ in range(2)] == ["quick", "quick"]
    assert len(tried) == 2
    assert not cache.exists()


def test_little_work_is_eager_and_tries_nothing(
    tried: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    upscaler = safmn.Upscaler(network(), device="cpu")
    with caplog.at_level(logging.INFO, "safmn.backend"):
        upscaler.expect(64 * 64)
    upscaler(image)
    assert not tried
    assert "Back end eager, fp32: another one takes longer to start than it saves here." in caplog.text
    large = safmn.Upscaler(network(), device="cpu")
    large.expect(10**8)
    large(image)
    assert len(tried) == 1
    named = safmn.Upscaler(network(), device="cpu", backend="eager")
    named.expect(1)
    assert named(image).shape == (128, 128, 3)
