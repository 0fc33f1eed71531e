"""Weight files: recognise the network, load every common form, and refuse unusable files with a clear message."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from safmn import compat, weights
from safmn.archs import FAMILY, SAFMN, SAFMN_BCIE
from safmn.archs.complexity import complexity
from safmn.archs.shapes import ffn_scale
from safmn.errors import CheckpointError, WeightsError
from safmn.registry import ARCH_REGISTRY, build
from safmn.training import basicsr_state as legacy_state

SECTION = {"type": "SAFMN", "dim": 8, "n_blocks": 2, "ffn_scale": 1.5, "upscaling_factor": 2}

# From each file's description: network, arguments, number of parameters.
PUBLISHED = {
    "safmn_x2_official_fp16.pth": ("SAFMN", (36, 8, 2.0, 2), 227_820),
    "safmn_x2_official_fp16.safetensors": ("SAFMN", (36, 8, 2.0, 2), 227_820),
    "safmn_ntire23_x4.pth": ("SAFMN_NTIRE23", (36, 8, 2.0, 4), 237_000),
    "safmnpp_x4.pth": ("SAFMNPP", (36, 6, 1.5, 4), 211_572),
    "light_safmnpp_x4.pth": ("LightSAFMNPP", (32, 2, 1.5, 4), 66_176),
    "safmnv3_x4.pth": ("SAFMNv3", (40, 6, 1.5, 4), 144_672),
}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build(ARCH_REGISTRY, SECTION).eval()


@pytest.fixture
def state(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


def refusal(call: Callable[[], object], path: Path) -> str:
    """Return the one-line error with which a file is refused; assert that it begins with the file."""
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------- recognising a network


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_file_is_recognised(name: str, weights_dir: Path) -> None:
    kind, arguments, params = PUBLISHED[name]
    found = weights.recognise(weights.load_state_dict(weights_dir / name))
    assert (found.type, tuple(found.kwargs.values()), found.scale) == (kind, arguments, arguments[-1])

    network = weights.load_network(weights_dir / name)
    assert type(network).__name__ == kind
    assert network.scale == arguments[-1]
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    assert not network.training
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.isfinite().all() for parameter in network.parameters())


FAMILY_ARGUMENTS = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["SAFMN", "SAFMN_NTIRE23", "SAFMNPP", "LightSAFMNPP"]),
            "dim": st.sampled_from([4, 12, 36]),
            "n_blocks": st.integers(1, 12),
            "ffn_scale": st.sampled_from([1.0, 1.5, 1.7, 2.0, 2.66]),
            "upscaling_factor": st.integers(1, 5),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("SAFMNv3"),
            "dim": st.sampled_from([16, 40]),
            "num_blocks": st.integers(1, 12),
            "ffn_scale": st.sampled_from([1.0, 1.5, 2.0]),
            "upscaling_factor": st.integers(1, 5),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("SAFMN_BCIE"),
            "dim": st.sampled_from([8, 20]),
            "n_blocks": st.integers(1, 3),
            "num_layers": st.integers(1, 11),
            "ffn_scale": st.sampled_from([1.0, 1.5, 2.0]),
            "upscaling_factor": st.integers(1, 3),
        }
    ),
)


@settings(deadline=None, max_examples=25)
@given(FAMILY_ARGUMENTS)
def test_every_network_of_the_family_is_recognised(section: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = build(ARCH_REGISTRY, section)
    found = weights.recognise(network.state_dict())
    assert {"type": found.type, **found.kwargs} | {"ffn_scale": 0} == section | {"ffn_scale": 0}
    assert int(found.kwargs["dim"] * found.kwargs["ffn_scale"]) == int(section["dim"] * section["ffn_scale"])
    assert found.scale == network.scale


@given(st.integers(1, 256), st.integers(1, 1024))
def test_ffn_scale_gives_the_same_width(dim: int, hidden: int) -> None:
    assert int(dim * ffn_scale(dim, hidden)) == hidden


def test_ffn_scale_is_the_published_decimal() -> None:
    assert [ffn_scale(36, 72), ffn_scale(36, 54), ffn_scale(36, int(36 * 1.7)), ffn_scale(40, 60)] == [2, 1.5, 1.7, 1.5]


@pytest.mark.parametrize("break_it", ["drop", "reshape", "add"])
def test_the_error_for_incomplete_weights_names_the_network_and_the_tensor(
    state: dict[str, Tensor], tmp_path: Path, break_it: str
) -> None:
    if break_it == "drop":
        del state["feats.1.safm.aggr.bias"]
    elif break_it == "reshape":
        state["feats.1.norm2.bias"] = torch.zeros(7)
    else:
        state["feats.0.extra"] = torch.zeros(1)
    path = tmp_path / "broken.pth"
    torch.save(state, path)
    message = refusal(lambda: weights.load_network(path), path)
    assert "looks like SAFMN (dim 8, n_blocks 2, ffn_scale 1.5, upscaling_factor 2)" in message
    assert {"drop": "safm.aggr.bias", "reshape": "norm2.bias is (7,)", "add": "feats.0.extra"}[break_it] in message


# ------------------------------------------------------------------------------------------------------ forms of files

FORMS = ["params", "params_ema", "both", "empty_ema", "bare", "safetensors", "module", "compiled", "model", "nested"]
FORMS += ["epoch"]


@pytest.mark.parametrize("form", FORMS)
def test_every_common_form_loads(network: nn.Module, state: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.pth"
    other = {name: value + 1 for name, value in state.items()}
    forms: dict[str, Any] = {
        "params": {"params": state},
        "params_ema": {"params_ema": state},
        "both": {"params": other, "params_ema": state},
        "bare": state,
        "module": {"params": {f"module.{name}": value for name, value in state.items()}},
        "compiled": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "model": {"epoch": 3, "model": state},
        "empty_ema": {"params": state, "params_ema": {}},
        "nested": {"state_dict": {"params_ema": state, "params": other}, "optimizer": {"state": {}}},
        "epoch": {"epoch": 3, **state, "lr": 1e-3},
    }
    if form == "safetensors":
        safetensors.torch.save_file(state, path)  # the suffix does not matter
    else:
        torch.save(forms[form], path)
    loaded = weights.load_network(path)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(image), network(image))


def test_param_key_chooses_and_falls_back_with_a_warning(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, single = tmp_path / "both.pth", tmp_path / "single.pth"
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"params": state, "params_ema": average}, path)
    torch.save({"params_ema": average}, single)
    name = "to_feat.bias"
    with caplog.at_level(logging.WARNING):
        assert torch.equal(weights.load_state_dict(path)[name], average[name])
        assert torch.equal(weights.load_state_dict(path, param_key="params")[name], state[name])
        assert torch.equal(weights.load_state_dict(path, param_key="params_ema")[name], average[name])
        assert not caplog.records
        assert torch.equal(weights.load_state_dict(single, param_key="params")[name], average[name])
    assert f"{single} has no 'params'" in caplog.text
    assert "using 'params_ema'" in caplog.text
    caplog.clear()
    torch.save({"state_dict": {"params": state, "params_ema": average}}, path)
    assert torch.equal(weights.load_state_dict(path, param_key="params")[name], state[name])
    assert not caplog.records


def test_weights_saved_on_a_gpu_load_without_one(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cuda.pth"
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save({"params": state}, path)
    with zipfile.ZipFile(path) as archive:
        assert b"cuda:3" in archive.read("cuda/data.pkl")
    assert all(value.device.type == "cpu" for value in weights.load_state_dict(path).values())
    assert weights.load_network(path).scale == 2


def test_saved_weights_and_metadata_load_unchanged(state: dict[str, Tensor], tmp_path: Path) -> None:
    average = {name: value.half() for name, value in state.items()}
    for path in (tmp_path / "new" / "w.pth", tmp_path / "w.safetensors"):
        weights.save_weights(path, params=state, params_ema=average, metadata={"scale": "2"})
        loaded = weights.load_state_dict(path)
        assert list(loaded) == (list(average) if path.suffix == ".pth" else sorted(average))  # safetensors sorts
        assert all(torch.equal(loaded[name], average[name]) for name in average)
    assert torch.load(tmp_path / "new" / "w.pth", weights_only=True)["metadata"] == {"scale": "2"}
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "scale": "2"}


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    weights.save_weights(tmp_path / "w.pth", params={"a": torch.zeros(1_000_000)[:3]})
    assert (tmp_path / "w.pth").stat().st_size < 10_000


def test_a_failed_save_leaves_the_old_file(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pth"
    weights.save_weights(path, params=state)
    before = path.read_bytes()

    def full_disk(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safmn.system.files.flush_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        weights.save_weights(path, params={})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_suffixes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\.pth or \.safetensors, not \.bin"):
        weights.save_weights(tmp_path / "w.bin", params={})


class Exploit:
    """A pickle that creates the file ``victim`` when it is loaded."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def test_pickled_code_is_refused_and_not_run(network: nn.Module, tmp_path: Path) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    torch.save({"params": {"to_feat.weight": Exploit(victim)}}, path)
    assert "pickled Python object" in refusal(lambda: weights.load_network(path), path)
    assert not victim.exists()
    torch.save(network, path)  # a pickled network object, as some tools save it
    message = refusal(lambda: weights.load_network(path), path)
    assert "pickled Python object (safmn.archs.safmn_arch.SAFMN)" in message


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    load = lambda: weights.load_state_dict(path)  # noqa: E731
    assert "no such weight file" in refusal(load, path)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(load, path)
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")
    assert "not a weight file" in refusal(load, path)
    torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 1, 1)), path)
    assert "TorchScript" in refusal(load, path)
    torch.save({"epoch": 3, "iter": 100, "optimizers": []}, path)
    message = refusal(load, path)
    assert "not weights" in message
    assert "'epoch', 'iter', 'optimizers'" in message
    endless: dict[str, Any] = {}
    endless["model"] = endless
    for nothing in ({}, [], 7, torch.zeros(3), {"params": {}}, {"epoch": 3}, endless, {"a": torch.zeros(3), "b": "c"}):
        torch.save(nothing, path)
        assert "not weights" in refusal(load, path)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "a folder" in refusal(lambda: weights.load_state_dict(folder), folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy.pth"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1, exclude_max=True))
@example(cut=0.017578125)  # within the name of a class
def test_truncated_files_are_refused(suffix: str, state: dict[str, Tensor], tmp_path: Path, cut: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".legacy.pth":
        torch.save({"params": state}, path, _use_new_zipfile_serialization=False)
    else:
        weights.save_weights(path, params=state)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    message = refusal(lambda: weights.load_network(path), path)
    assert any(reason in message for reason in ("damaged or incomplete", "is empty", "not a weight file"))


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@example(place=0.90625, flip=16)  # an attribute that turns a tensor's entry into a folder
def test_a_damaged_pth_is_refused_or_harmless(
    state: dict[str, Tensor], tmp_path: Path, place: float, flip: int
) -> None:
    """Wherever a byte changes, the file is refused, or the weights are the same because the byte has no meaning."""
    path = tmp_path / "w.pth"
    weights.save_weights(path, params=state)
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= flip
    path.write_bytes(content)
    with contextlib.suppress(WeightsError):
        loaded = weights.load_state_dict(path)
        assert list(loaded) == list(state)
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_an_averaged_model_of_torch_loads(tmp_path: Path) -> None:
    network = SAFMN(dim=8, n_blocks=2)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    torch.save(averaged.state_dict(), tmp_path / "w.pth")
    loaded, expected = weights.load_state_dict(tmp_path / "w.pth"), network.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


@pytest.mark.parametrize("kind", ["sparse", "csr", "meta"])
def test_tensors_without_plain_values_are_refused(state: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    make = {"sparse": torch.eye(4).to_sparse, "csr": torch.eye(4).to_sparse_csr, "meta": torch.eye(4).to}[kind]
    name = next(iter(state))
    path = tmp_path / "w.pth"
    torch.save({**state, name: make("meta") if kind == "meta" else make()}, path)
    assert f"{name} is a sparse tensor" in refusal(lambda: weights.load_state_dict(path), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_integer_and_non_finite_weights_are_refused(state: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    """Integer tensors beside the weights, as some networks have, are allowed."""
    path = tmp_path / f"w{suffix}"
    load = lambda: weights.load_state_dict(path)  # noqa: E731
    weights.save_weights(path, params={name: (100 * tensor).int() for name, tensor in state.items()})
    assert ".weight is torch.int32" in refusal(load, path) or ".bias is torch.int32" in refusal(load, path)
    name = "feats.1.norm2.bias"
    broken = state[name].clone()
    for kind, value in ((torch.float32, "nan"), (torch.float16, "inf"), (torch.bfloat16, "-inf")):
        broken[-1] = float(value)
        weights.save_weights(path, params={k: t.to(kind) for k, t in (state | {name: broken}).items()})
        message = refusal(load, path)
        assert name in message
        assert "not finite" in message
    indices = state | {"table": torch.arange(3), "empty": torch.zeros(0)}
    weights.save_weights(path, params=indices)
    assert set(weights.load_state_dict(path)) == set(indices)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_safetensors_raises_only_weights_errors(
    state: dict[str, Tensor], tmp_path: Path, place: float, flip: int
) -> None:
    """It may also load: the format has no checksums, so a changed value in a tensor cannot be detected."""
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, params=state)
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= flip
    path.write_bytes(content)
    with contextlib.suppress(WeightsError):
        weights.load_network(path)


def test_a_file_without_checksums_loads(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert weights.load_network(path).scale == 2


# ------------------------------------------------------------------------------------------------------- hostile files

_BOUNDED = """
import resource, signal, sys
from pathlib import Path
from safmn import compat, weights
from safmn.errors import WeightsError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
signal.alarm(100)
for path in sys.argv[1:]:
    try:
        said = f"loaded {weights.load_network(path)}"
    except WeightsError as error:
        said = str(error)
    print(Path(path).stem, said, flush=True)
"""
REFUSED = {
    hostile_files.expanded: "far more than the file",
    hostile_files.one_expanded: "far more than the file",
    hostile_files.overlapping: "far more than the file",
    hostile_files.many_views: "far more than the file",
    hostile_files.deflated_pickle: "are allowed",
    hostile_files.lying_deflate: "a checksum or a size is wrong",
    hostile_files.storage_beyond_file: "10000000000",
    hostile_files.tensor_beyond_storage: "within its 10 values",
    hostile_files.negative: "impossible sizes",
    hostile_files.wrapping: "far more than the file",
    hostile_files.legacy_huge: "10000000000 bytes",
    hostile_files.legacy_expanded: "far more than the file",
    hostile_files.sparse: "w is a sparse tensor",
    hostile_files.meta: "without values",
    hostile_files.quantised: "w is a quantised tensor",
    hostile_files.nested_key: "damaged",
    hostile_files.laughs: "not weights",
    hostile_files.giant_memo: "not weights",
    hostile_files.giant_bytes: "damaged",
    hostile_files.reduce_bytearray: "not weights",
    hostile_files.new_storage: "not weights",
    hostile_files.safetensors_huge: "damaged or incomplete safetensors",
    hostile_files.safetensors_overlap: "damaged or incomplete safetensors",
    hostile_files.safetensors_long_header: "its header claims",
    hostile_files.safetensors_twice: "duplicate name",
    hostile_files.many_blocks: "but has only",
    hostile_files.foreign_blocks: "3000000",
}


def test_hostile_files_are_refused_within_two_gibibytes(tmp_path: Path) -> None:
    """Without checks, loading or using each of them takes gigabytes or minutes (python tests/hostile_files.py)."""
    made = {make.__name__: make(tmp_path / f"{make.__name__}.pth") for make in REFUSED}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BOUNDED, *map(str, made.values())],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said.keys() == made.keys()
    for make, words in REFUSED.items():
        assert words in said[make.__name__], make.__name__
    assert not any("weights_only" in line or "add_safe_globals" in line for line in said.values())


def test_basicsr_training_states_are_read_as_safely(tmp_path: Path) -> None:
    path = tmp_path / "7.state"
    for make in (hostile_files.expanded, hostile_files.nested_key, hostile_files.storage_beyond_file):
        with pytest.raises(CheckpointError, match=r"7\.state: .*not a training state"):
            legacy_state._read(make(path))
    torch.save({"iter": 7, "optimizers": [Exploit(tmp_path / "victim")]}, path)
    with pytest.raises(CheckpointError, match="pickled Python object"):
        legacy_state._read(path)
    assert not (tmp_path / "victim").exists()
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(4.0)}}
    torch.save(
        {"iter": 7, "epoch": 1, "optimizers": [{"state": moments, "param_groups": [{"betas": (0.9, 0.99)}]}]}, path
    )
    (optimizer,) = legacy_state._read(path)["optimizers"]
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.arange(4.0))
    assert optimizer["param_groups"] == [{"betas": (0.9, 0.99)}]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["little", "big"])
def test_unusual_archives_load_correctly(tmp_path: Path, compressed: bool, order: str) -> None:
    """They are compressed, have the other byte order, or hold views of one storage."""
    values = torch.arange(600, dtype=torch.float32)
    data = values.numpy().astype({"little": "<f4", "big": ">f4"}[order]).tobytes()
    storage = hostile_files.Storage("0", 600)
    path = hostile_files.archive(
        tmp_path / "w.pth",
        {
            "whole": hostile_files.Claim(storage, (20, 30), (30, 1)),
            "turned": hostile_files.Claim(storage, (30, 10), (1, 30), 300),
            "repeated": hostile_files.Claim(storage, (4, 3), (0, 1), 5),
        },
        {"0": data},
        compression=zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED,
        byteorder=order.encode(),
    )
    loaded = weights.load_state_dict(path)
    assert torch.equal(loaded["whole"], values.view(20, 30))
    assert torch.equal(loaded["turned"], values[300:].view(10, 30).T)
    assert torch.equal(loaded["repeated"], torch.tensor([[5.0, 6.0, 7.0]]).expand(4, 3))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["zip", "legacy", "parameters", "protocol"])
def test_our_reader_gives_the_same_tensors_as_torch(
    state: dict[str, Tensor], tmp_path: Path, kind: torch.dtype, form: str
) -> None:
    if form == "legacy" and kind == torch.float8_e4m3fn:
        pytest.skip("torch itself cannot load this combination")
    path = tmp_path / "w.pth"
    content: Any = OrderedDict((name, value.to(kind)) for name, value in state.items())
    content["counter"] = torch.tensor(3)
    if form == "parameters":
        content = nn.ParameterDict({name.replace(".", "_"): value for name, value in state.items()}).state_dict()
        content = {name: nn.Parameter(value.to(kind)) for name, value in content.items()}
    protocol = 4 if form == "protocol" else 2
    torch.save({"params": content}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form != "legacy")
    expected = torch.load(path, weights_only=False)["params"]
    loaded = weights.load_state_dict(path)
    assert list(loaded) == list(expected)
    for name, value in expected.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name].double(), value.double())


def test_only_the_weights_of_a_large_file_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"params": state, "optimizer": {"exp_avg": torch.full((1000,), float("nan"))}}, path)
    content = bytearray(path.read_bytes())
    place = content.rindex(torch.full((9,), float("nan")).numpy().tobytes())
    content[place] ^= 1  # damages only the optimiser's state
    path.write_bytes(content)
    assert weights.load_network(path).scale == 2
    with pytest.raises(WeightsError, match="damaged"):
        weights.load_plain(path)


OTHERS: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "gzip"),
    "zeros": (bytes(1000), "zero bytes"),
    "json": (b'{"message": "Not Found"}', "text"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.8.0:\x91", "ONNX model"),
    "ncnn": (b"7767517\n3 3\n", "ncnn"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(30), "PNG image"),
    "pickle": (pickle.dumps([1, 2, 3]), "Python pickle"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_error_names_the_type_of_another_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pth"
    content, words = OTHERS[kind]
    path.write_bytes(content)
    message = refusal(lambda: weights.load_network(path), path)
    assert words in message
    assert "not a weight file" in message


def test_the_error_names_the_content_of_other_archives(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    weights.save_weights(tmp_path / "inner.pth", params=state)
    for name, words in (("model/inner.pth", "unpack it"), ("a.npy", "NumPy"), ("readme.txt", "readme.txt")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "inner.pth", name)
        assert words in refusal(lambda: weights.load_network(path), path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", hostile_files.pickled({}))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", hostile_files.pickled({}))
    assert "same name" in refusal(lambda: weights.load_network(path), path)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "a pipe" in refusal(lambda: weights.load_network(tmp_path / "pipe.pth"), tmp_path / "pipe.pth")


@pytest.mark.parametrize("prefix", ["net_g.", "generator.", "model.", "net_g_ema."])
@pytest.mark.parametrize("alone", [True, False])
def test_the_generator_in_a_training_checkpoint_is_found(
    network: nn.Module,
    state: dict[str, Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    prefix: str,
    alone: bool,
) -> None:
    path = tmp_path / "last.ckpt"
    content = {prefix + name: value for name, value in state.items()}
    if not alone:
        content["net_d.conv.weight"] = torch.zeros(3, 3)
    torch.save({"state_dict": content, "epoch": 3}, path)
    with caplog.at_level(logging.INFO):
        loaded = weights.load_network(path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert f"'{prefix}'" in caplog.text
    other = build(ARCH_REGISTRY, SECTION)
    weights.load_into(other, path, section=SECTION)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_quantised_and_too_large_values_are_refused(
    state: dict[str, Tensor], tmp_path: Path, network: nn.Module
) -> None:
    path = tmp_path / "w.pth"
    name = "to_feat.weight"
    weights.save_weights(path, params={**state, name: (state[name] * 100).to(torch.int8)})
    for load in (lambda: weights.load_network(path), lambda: weights.load_into(network, path)):
        assert f"{name} is torch.int8" in refusal(load, path)
    weights.save_weights(path, params={**state, name: state[name].double() * 1e300})
    message = refusal(lambda: weights.load_network(path), path)
    assert name in message
    assert "not finite" in message
    weights.save_weights(path, params={**state, name: state[name].to(torch.complex64)})
    assert f"{name} is torch.complex64" in refusal(lambda: weights.load_network(path), path)


# --------------------------------------------------------------------------------------- comparison with option files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upscaling_factor": 4}, r"upscaling_factor 2,.* says 4"),
        ({"dim": 12}, r"dim 8,.* says 12"),
        ({"n_blocks": 3}, r"n_blocks 2,.* says 3"),
        ({"ffn_scale": 2.0}, r"ffn_scale 1\.5,.* says 2\.0"),
        ({"dim": 16, "n_blocks": 9}, r"dim 8,.* says 16"),
        ({"type": "SAFMNPP"}, "option file says SAFMNPP"),
    ],
)
def test_the_first_wrong_argument_is_named(
    state: dict[str, Tensor], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "w.pth"
    weights.save_weights(path, params=state)
    section = SECTION | change
    network = build(ARCH_REGISTRY, section)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert re.search(message, refusal(lambda: weights.load_into(network, path, section=section), path))
    assert "do not fit" in refusal(lambda: weights.load_into(network, path), path)  # without the options
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_defaults_and_equal_widths_fit(state: dict[str, Tensor]) -> None:
    weights.check_fits(SECTION, state, "w.pth")
    weights.check_fits(SECTION | {"ffn_scale": 1.51}, state, "w.pth")  # int(8 * 1.51) == int(8 * 1.5)
    with pytest.raises(WeightsError, match=r"upscaling_factor 2,.* says 4"):
        weights.check_fits({"type": "SAFMN", "dim": 8, "n_blocks": 2, "ffn_scale": 1.5}, state, "w.pth")


def test_networks_outside_the_family_are_checked_by_their_shapes() -> None:
    section = {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 2, "upscale": 2}
    random_state = torch.get_rng_state()
    state = build(ARCH_REGISTRY, section).state_dict()
    torch.set_rng_state(random_state)
    weights.check_fits(section, state, "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: .*do not fit SRVGGNetCompact: body\.6\.weight"):
        weights.check_fits(section | {"upscale": 3}, state, "w.pth")
    assert torch.equal(torch.get_rng_state(), random_state), "checking weights changed the random state"


def test_not_strict_loads_what_fits_and_warns(
    network: nn.Module, state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    weights.save_weights(path, params=state)
    larger = build(ARCH_REGISTRY, SECTION | {"upscaling_factor": 3})
    with caplog.at_level(logging.WARNING):
        weights.load_into(larger, path, strict=False)
    assert "to_img.0.weight is (12, 8, 3, 3) in the file and (27, 8, 3, 3) in the network" in caplog.text
    assert "1 more" in caplog.text
    assert all(torch.equal(a, state[name]) for name, a in larger.state_dict().items() if "to_img" not in name)


# ------------------------------------------------------------------------------------------ spandrel, BasicSR, the zoo


@pytest.mark.parametrize(
    "section",
    [SECTION, {"type": "SAFMN_BCIE", "dim": 8, "n_blocks": 2, "num_layers": 2, "ffn_scale": 1.5}],
    ids=lambda section: section["type"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_spandrel_reads_our_files_and_we_read_its_files(section: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    spandrel = pytest.importorskip("spandrel")
    ours = build(ARCH_REGISTRY, section).eval()
    path, back = tmp_path / f"w{suffix}", tmp_path / f"back{suffix}"
    average = {name: value * 1.1 for name, value in ours.state_dict().items()}
    weights.save_weights(path, params=ours.state_dict(), params_ema=average, metadata={"note": "x"})

    descriptor = spandrel.ModelLoader().load_from_file(path)
    assert descriptor.architecture.id == section["type"].replace("_", "")
    assert descriptor.scale == ours.scale
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        theirs = descriptor.model(image)
        torch.testing.assert_close(weights.load_network(path)(image), theirs, rtol=1e-4, atol=1e-5)

        if suffix == ".pth":
            torch.save(descriptor.model.state_dict(), back)
        else:
            safetensors.torch.save_file(descriptor.model.state_dict(), back)
        torch.testing.assert_close(weights.load_network(back)(image), theirs, rtol=1e-4, atol=1e-5)


def test_basicsr_reads_our_files_and_we_read_its_files(
    network: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    from basicsr.models.base_model import BaseModel

    model = BaseModel({"num_gpu": 0, "is_train": False, "path": {"models": str(tmp_path)}})
    ours = tmp_path / "w.pth"
    weights.save_weights(ours, params=state, params_ema=state, metadata={"note": "x"})
    for key in ("params", "params_ema"):
        theirs = build(ARCH_REGISTRY, SECTION)
        model.load_network(theirs, str(ours), strict=True, param_key=key)
        assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())

    model.save_network([network, network], "net_g", 7, param_key=["params", "params_ema"])
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(weights.load_network(tmp_path / "net_g_7.pth")(image), network(image))


@pytest.fixture
def compact(tmp_path: Path) -> tuple[Path, nn.Module]:
    """Return a network outside the family, and the file that holds it in its authors' format."""
    torch.manual_seed(0)
    section = {"type": "SRVGGNetCompact", "num_feat": 8, "num_conv": 3, "upscale": 2, "act_type": "prelu"}
    network = build(ARCH_REGISTRY, section).eval()
    path = tmp_path / "compact.pth"
    torch.save({"params": network.state_dict()}, path)
    return path, network


def test_networks_outside_the_family_load_through_spandrel(compact: tuple[Path, nn.Module]) -> None:
    pytest.importorskip("spandrel")
    path, original = compact
    network = weights.load_network(path)
    assert isinstance(network, weights.ForeignNetwork)
    assert (network.scale, network.window, network.halo) == (2, 1, None)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.rand(2, 3, 17, 13)
    torch.testing.assert_close(network(image), original(image).clamp(0, 1))
    original.scale = 2
    assert complexity(network) == complexity(original)


def test_spandrel_works_in_a_fresh_process(compact: tuple[Path, nn.Module]) -> None:
    """There nothing has imported BasicSR yet, and so nothing has repaired torchvision, which spandrel imports."""
    pytest.importorskip("spandrel")
    path, _ = compact
    code = f"import safmn; assert safmn.load_network({str(path)!r}).scale == 2"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr


def test_without_spandrel_the_error_says_how_to_install_it(
    compact: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = compact
    monkeypatch.setitem(sys.modules, "spandrel", None)
    message = refusal(lambda: weights.load_network(path), path)
    assert "SAFMN family" in message
    assert "pip install spandrel" in message


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    compat.repair_torchvision()  # spandrel imports torchvision
    pytest.importorskip("spandrel")
    path = tmp_path / "w.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    message = refusal(lambda: weights.load_network(path), path)
    assert re.search("spandrel does not (know|recognise)", message)


def test_weights_load_by_their_name_in_the_zoo(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.safetensors"
    weights.save_weights(file, params=state)
    monkeypatch.setattr("safmn.weights.zoo.path", {"tiny-x2": file}.__getitem__)
    assert weights.load_network("tiny-x2").scale == 2
    assert weights.locate(tmp_path / "w.pth") == tmp_path / "w.pth"
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="tiny-x2: no such file"):
        weights.load_network("tiny-x2")


# ------------------------------------------------------------------------------------------------------ real images

# File: (state dict, scale, PSNR on Set5 with whole images, Y channel, crop = scale).
SET5 = {
    "safmn_x2_official_fp16.safetensors": ("params", 2, 38.000),
    "safmn_ntire23_x4.pth": ("params", 4, 32.165),
    "safmnpp_x4.pth": ("params", 4, 32.023),
    "safmnv3_x4.pth": ("params", 4, 32.031),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SET5)
def test_set5_psnr_of_published_weights(name: str, weights_dir: Path, benchmark_dir: Path) -> None:
    from safmn import imaging, metrics

    key, scale, expected = SET5[name]
    network = weights.load_network(weights_dir / name, param_key=key)
    values = []
    for path in sorted((benchmark_dir / "Set5" / "HR").glob("*.png")):
        lr = imaging.read_rgb(benchmark_dir / "Set5" / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        with torch.inference_mode():
            result = imaging.to_uint8(network(imaging.to_tensor(lr)[None])[0])
        hr = imaging.read_rgb(path)[: result.shape[0], : result.shape[1]]
        values.append(metrics.psnr(result, hr, crop=scale, y=True))
    assert np.mean(values) == pytest.approx(expected, abs=0.003)


def test_the_family_contains_all_tested_networks() -> None:
    assert {network.__name__ for network in FAMILY} >= {kind for kind, _, _ in PUBLISHED.values()}
    assert {SAFMN, SAFMN_BCIE} <= set(FAMILY)
