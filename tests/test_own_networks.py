"""An option file or a weight file is a network, also of the user's own. What it does not state is found by trying."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from torch import Tensor, nn

import safmn
from safmn import code_identity, imports, weights
from safmn import test as testing
from safmn.archs.complexity import complexity
from safmn.archs.probing import ProbingError, WindowFinder, traits_of
from safmn.cli import export, upscale
from safmn.code_identity import as_module
from safmn.errors import OptionError, WeightsError
from safmn.evaluation.applying import Applying, fitted
from safmn.evaluation.methods import _from_option_file, open_methods
from safmn.evaluation.scoring import evaluate
from safmn.imaging import read_rgb
from safmn.inference.export import ExportError, export_network
from safmn.inference.sources import load_named
from safmn.registry import ARCH_REGISTRY, find
from safmn.train import main
from safmn.weights.origin import Code, Origin

# --- traits -----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Three convolutions; states nothing about itself. Halo: 1 + 2 + 1 pixels."""

    def __init__(self, scale: int = 4, dim: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim, 3, 1, 1), nn.ReLU(), nn.Conv2d(dim, dim, 5, 1, 2), nn.ReLU(),
            nn.Conv2d(dim, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Windowed(Plain):
    """Mixes the pixels of each window of 6, as window attention does; refuses other sizes, and less than 12 pixels."""

    def forward(self, x: Tensor) -> Any:
        assert min(x.shape[2:]) >= 12, "too small"
        means = nn.functional.avg_pool2d(x, 6)  # (B, 3, h / 6, w / 6)
        return self.layers(x + nn.functional.interpolate(means, scale_factor=6))


class Global(Plain):
    """Depends on the whole image."""

    def forward(self, x: Tensor) -> Any:
        return self.layers(x * x.mean(dim=(2, 3), keepdim=True))


class Misleading(Plain):
    """Has attributes of the same names with other meanings, as transformers do (``scale``: of the attention)."""

    scale = 0.25
    window = (8, 8)
    halo = True


class Centred(Plain):
    """Depends on a pixel's place in the image, so that pieces differ from the whole although no pixel is far."""

    def forward(self, x: Tensor) -> Any:
        return self.layers(x + torch.linspace(0, 1, x.shape[3]))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Plain(4), (4, 1, 1, 4)),
        (Plain(3), (3, 1, 1, 4)),
        (Plain(1), (1, 1, 1, 4)),
        (Windowed(2), (2, 6, 12, 9)),  # from the first pixel of a window to its last, and 4 more
        (Global(2), (2, 1, 1, None)),
        (Centred(2), (2, 1, 1, None)),
        (Misleading(2), (2, 1, 1, 4)),
    ],
)
def test_traits_are_found_by_trying(network: nn.Module, expected: tuple[int, int, int, int | None]) -> None:
    before = torch.get_rng_state()
    traits = traits_of(network)
    assert (traits.scale, traits.window, traits.smallest, traits.halo) == expected
    assert torch.equal(before, torch.get_rng_state())
    assert network.training


def test_the_traits_of_our_networks_are_what_they_state() -> None:
    """The search is right where the answer is known: SAFMN's halo and window follow from its layers."""
    network = find(ARCH_REGISTRY, "SAFMN")(dim=8, n_blocks=1, upscaling_factor=2)
    stated = network.halo, network.window
    del network.halo
    assert (traits_of(network).halo, traits_of(network).window) == stated


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :1], r"shape \(1, 1, .*RGB"),
        (lambda x: (x, x), "gives tuple"),
        (lambda x: x[..., :-1], "whole number of times"),
        (lambda x: {}["lost"], "KeyError: 'lost'"),
    ],
)
def test_networks_that_cannot_upscale_are_refused(change: Any, words: str) -> None:
    class Odd(Plain):
        def forward(self, x: Tensor) -> Any:
            return change(self.layers(x))

    with pytest.raises(ProbingError, match=f"Odd.*{words}"):
        traits_of(Odd())
    with pytest.raises(ProbingError, match=f"Odd.*{words}"):
        safmn.Upscaler(Odd())


def test_multiply_adds_are_of_the_right_scale() -> None:
    """Without the attribute ``scale``, the count is not that of an image of the output's size."""
    network, stating = Plain(4), Plain(4)
    stating.scale, stating.window = 4, 1  # type: ignore[assignment]
    assert complexity(network) == complexity(stating)
    assert complexity(Windowed(4)).multiply_adds == pytest.approx(complexity(stating).multiply_adds, rel=0.02)


@pytest.mark.parametrize("size", [(24, 30), (13, 37), (5, 7), (1, 1)])
@pytest.mark.parametrize("kind", [Plain, Windowed])
def test_images_of_any_size_are_upscaled(kind: type[nn.Module], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = kind(2)  # type: ignore[call-arg]
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    result = safmn.Upscaler(network, backend="eager", guard=False)(image)
    assert result.shape[2:] == (2 * size[0], 2 * size[1])
    if min(size) >= 12:  # the reference pads by reflection, which cannot enlarge a small image enough
        padded = nn.functional.pad(image, (0, -size[1] % 6, 0, -size[0] % 6), mode="reflect")
        with torch.no_grad():
            expected = network(padded)[..., : 2 * size[0], : 2 * size[1]].clamp(0, 1)
        assert torch.allclose(result, expected, atol=1e-6) or kind is Plain


@pytest.mark.parametrize("kind", [Plain, Windowed])
def test_tiles_equal_the_whole(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind(2)  # type: ignore[call-arg]
    image = torch.rand(1, 3, 120, 150, generator=torch.Generator().manual_seed(1))
    whole, pieces = (safmn.Upscaler(network, tile=tile, backend="eager", guard=False)(image) for tile in (0, 24))
    assert (whole - pieces).abs().max() < 1e-6


def test_validation_finds_the_window() -> None:
    item = {"lq": torch.rand(3, 17, 20), "gt": torch.rand(3, 34, 40), "lq_path": "a.png"}
    metrics = {"psnr": {"type": "calculate_psnr", "crop_border": 2}}
    found = evaluate(Windowed(2), [item], name="Set", metrics=metrics, device="cpu", progress=False)
    assert found.mean["psnr"] > 0
    finder = WindowFinder()
    assert finder(Windowed(2), torch.rand(1, 3, 17, 20)).shape == (1, 3, 34, 40)
    assert finder.window == 6


def test_export_asks_the_file_for_sizes_that_the_network_takes(tmp_path: Path) -> None:
    """The check of the file leaves out images below the network's smallest size, and the user is told."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = weights.with_interface(Windowed(2))
    exported = export_network(network, tmp_path / "a.onnx")
    assert exported.error is not None
    assert min(min(size) for size in exported.sizes) >= 12
    assert any("at least 12 pixels" in note for note in exported.notes)


class OfChannels(nn.Module):
    """A network for images of any number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 5, padding=2), nn.Conv2d(4, 4 * channels, 3, padding=1), nn.PixelShuffle(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_of_other_channels_are_tested_in_exact_tiles_and_refused_elsewhere(channels: int) -> None:
    torch.manual_seed(0)
    network, image = OfChannels(channels).eval(), torch.rand(1, channels, 33, 41)
    tiles = fitted(Applying(tile=8), network)
    assert tiles.halo == 3
    with torch.no_grad():
        assert torch.allclose(tiles(network, image), network(image), atol=1e-6)
    words = f"OfChannels takes images of {channels} channels?, not RGB ones: it can be trained, validated and tested"
    with pytest.raises(ProbingError, match=words):
        weights.with_interface(network)


class Pooled(nn.Module):
    """Pools to an eighth of the sides, as SMFANet's published file does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        small = nn.functional.adaptive_max_pool2d(y, (y.shape[2] // 8, y.shape[3] // 8))
        return nn.functional.pixel_shuffle(self.last(y * nn.functional.interpolate(small, size=y.shape[2:])), 2)


class Routed(nn.Module):
    """Runs the best of its experts, as SeemoRe's published file does."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(3, 12, 3, 1, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best = int(x.mean((2, 3)).argmax(1)[0])  # the strongest colour
        return nn.functional.pixel_shuffle(self.experts[best](x), 2)


def test_export_says_which_sizes_to_try(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = weights.with_interface(Pooled())
    with pytest.raises(ExportError, match=r"Try a fixed size, for example --size 256x256, or another format"):
        export_network(network, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"multiples of 16, for example --size 64x48, or another format"):
        export_network(network, tmp_path / "a.onnx", size=(37, 50))
    exported = export_network(network, tmp_path / "a.onnx", size=(48, 64))
    assert exported.error is not None
    assert exported.error < 1e-5


def test_export_explains_a_network_that_chooses_by_the_image(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = weights.with_interface(Routed())
    for size in (None, (16, 24)):
        with pytest.raises(
            ExportError, match=r"right for other images of this size: the network chooses its operations"
        ):
            export_network(network, tmp_path / "a.onnx", size=size)
    assert not (tmp_path / "a.onnx").exists()


def test_a_network_trained_on_normalised_images_gets_them() -> None:
    torch.manual_seed(0)
    bare, image = Plain(2), torch.rand(1, 3, 16, 16)
    network = weights.with_interface(bare, mean=[0.4, 0.5, 0.6], std=[0.5, 0.5, 0.25])
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.5, 0.5, 0.25]))
    with torch.no_grad():
        assert torch.allclose(network(image), bare((image - mean) / std) * std + mean)
    assert weights.kind_of(network) == "Plain"


# --- files ------------------------------------------------------------------------------------------------------------

PARTS = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from blocks_{name} import last


@ARCH_REGISTRY.register()
class {name}(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, dim, 3, padding=1), last(dim)

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2) + self.last(self.first(x))
"""
BLOCKS = """
from torch import nn


def last(dim):
    return nn.Sequential(nn.Conv2d(dim, 12, 3, padding=1), nn.PixelShuffle(2))
"""


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an option file, a file of an own network, and a finished run of it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(PARTS.format(name="OwnOfFiles"))
    (folder / "blocks_OwnOfFiles.py").write_text(BLOCKS)
    content = tiny_run.options(images, total_iter=6)
    content |= {"imports": ["own_parts.py"], "network_g": {"type": "OwnOfFiles", "dim": 12}, "path": {}}
    tiny_run.write_options(folder, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAFMN_CACHE", str(folder / "cache"))
        assert main(["-opt", "options.yml"]) == 0
    return folder


@pytest.mark.slow
def test_a_package_may_be_named_by_its_path(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is copied into the run as a whole, and its weights find it again, also in the copy."""
    kind = "PackagedOfFiles"
    monkeypatch.setattr(imports, "_imported", dict(imports._imported))  # other tests must not load the moved package
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "sub" / kind
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import network\n")
    (package / "network.py").write_text(PARTS.format(name=kind).replace("from blocks_", "from .blocks_"))
    (package / f"blocks_{kind}.py").write_text(BLOCKS)
    content = tiny_run.options(images, total_iter=1)
    for name in ("__init__.py", "network.py"):  # relative imports
        module = kind if name == "__init__.py" else f"{kind}.network"
        assert as_module(f"sub/{kind}/{name}") == (module, tmp_path / "sub")
    assert as_module(f"sub/{kind}/blocks_{kind}.py") == (f"sub/{kind}/blocks_{kind}.py", None)
    content |= {"imports": [f"sub/{kind}/"], "network_g": {"type": kind, "dim": 4}, "path": {}}
    tiny_run.write_options(tmp_path, content)
    assert main(["-opt", "options.yml"]) == 0
    copies = {path.name for path in (tmp_path / "experiments/tiny/code" / kind).iterdir()}
    assert copies == {"__init__.py", "network.py", f"blocks_{kind}.py"}
    package.rename(tmp_path / "moved")
    monkeypatch.setattr(imports, "_imported", {})  # as in a new process
    for module in [name for name in sys.modules if name.partition(".")[0] == kind]:
        monkeypatch.delitem(sys.modules, module)
    del ARCH_REGISTRY._obj_map[kind]
    monkeypatch.chdir(tmp_path)
    network = safmn.load_network(LATEST).network
    assert type(network).__module__ == f"{kind}.network"
    assert Path(inspect.getfile(type(network))).is_relative_to(tmp_path / "experiments/tiny/code")


LATEST = "experiments/tiny/models/net_g_latest.pth"


def test_a_weight_file_says_what_built_it(trained: Path) -> None:
    """Other programs ignore the note."""
    path = trained / LATEST
    origin = weights.read_origin(weights.metadata_of(path), path)
    assert origin is not None
    assert origin.section == {"type": "OwnOfFiles", "dim": 12}
    assert origin.scale == 2
    [code] = origin.imports
    assert code.name == "own_parts.py"
    assert list(code.files) == ["own_parts.py", "blocks_OwnOfFiles.py"]
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"params", "params_ema", "metadata"}
    assert content["params"].keys() == content["params_ema"].keys()
    converted = trained / "converted.safetensors"
    weights.save_weights(converted, params=content["params_ema"], metadata=origin.metadata())
    assert weights.read_origin(weights.metadata_of(converted), converted) == origin


def test_basicsr_and_spandrel_load_files_with_the_note(tmp_path: Path) -> None:
    from basicsr.archs import build_network
    from basicsr.models.base_model import BaseModel

    section = {"type": "SRVGGNetCompact", "num_feat": 8, "num_conv": 2, "upscale": 2}
    network = build_network(section)
    origin = weights.origin_of(section, scale=2)
    weights.save_weights(tmp_path / "a.pth", params=network.state_dict(), metadata=origin.metadata())
    loading = BaseModel({"num_gpu": 0, "is_train": False})
    other = build_network(section)
    loading.load_network(other, str(tmp_path / "a.pth"), strict=True, param_key="params")
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), other.parameters(), strict=True))
    spandrel = pytest.importorskip("spandrel")
    assert spandrel.ModelLoader().load_from_file(tmp_path / "a.pth").scale == 2


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes this process forget the imported files of the test, as a new process has."""

    def forget() -> None:
        for name in [name for name in ARCH_REGISTRY._obj_map if name == "OwnOfFiles"]:
            monkeypatch.delitem(ARCH_REGISTRY._obj_map, name)
        for name in ("own_parts", "blocks_OwnOfFiles"):
            sys.modules.pop(name, None)
        monkeypatch.setattr("safmn.imports._imported", {})

    return forget


def test_weights_of_a_run_upscale_by_themselves(trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new process, which has not imported the network's file; the option file gives the same image."""
    photo = str(next((images / "val/lr").glob("*.png")))
    code = "import sys; from safmn.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "upscale", photo, "-o", "by_weights.png", "--weights", LATEST]
    cache = {"SAFMN_CACHE": str(trained / "cache"), "PYTHONPATH": str(Path(safmn.__file__).parent.parent)}
    done = subprocess.run(command, cwd=trained, capture_output=True, text=True, env={**os.environ, **cache})
    assert done.returncode == 0, done.stderr
    assert "OwnOfFiles: scale 2, any size, exact tiles with 2 pixels" in done.stderr
    assert "own_parts.py" in done.stderr
    monkeypatch.chdir(trained)
    assert upscale.main([photo, "-o", "by_options.png", "-opt", "options.yml"]) == 0
    assert np.array_equal(read_rgb(trained / "by_weights.png"), read_rgb(trained / "by_options.png"))


def test_code_of_a_weight_file_is_not_run_unasked(
    trained: Path,
    images: Path,
    tmp_path: Path,
    forgotten: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not if it is unknown on this machine, missing or changed; the message says what to do, and that works."""
    photo = str(next((images / "val/lr").glob("*.png")))

    def run(folder: Path, *arguments: str, cache: Path) -> tuple[int, str]:
        forgotten()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SAFMN_CACHE", str(cache))
        status = upscale.main([photo, "-o", str(tmp_path / "a.png"), "--weights", str(trained / LATEST), *arguments])
        return status, capfd.readouterr().err

    status, text = run(trained, cache=tmp_path / "unused")
    assert status == 2
    assert "own_parts.py is that file" in text
    assert "--imports own_parts.py" in text
    (elsewhere := tmp_path / "elsewhere").mkdir()
    status, text = run(elsewhere, cache=trained / "cache")
    assert status in (0, 2)  # 0 if the run's folder has a copy of the code
    assert status == 0 or "--imports " in text
    for name in ("own_parts.py", "blocks_OwnOfFiles.py"):
        (elsewhere / name).write_text((trained / name).read_text())
    with (elsewhere / "blocks_OwnOfFiles.py").open("a") as file:
        file.write("raise SystemExit('must not run')\n")
    monkeypatch.setattr("safmn.weights.origin.CODE", "nowhere")
    status, text = run(elsewhere, cache=trained / "cache")
    assert status == 2
    assert "has changed" in text
    assert "must not run" not in text
    status, text = run(elsewhere, "--imports", str(trained / "own_parts.py"), cache=tmp_path / "unused")
    assert status == 0, text


def test_own_weights_are_not_taken_for_a_network_of_ours_with_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMFANet is one of SAFMN's, but the user's file registers another one, as its authors' file would."""
    monkeypatch.setenv("SAFMN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = PARTS.format(name="SMFANet").replace("blocks_SMFANet", "blocks_of_their_smfanet")
    (tmp_path / "their_smfanet.py").write_text(text)
    (tmp_path / "blocks_of_their_smfanet.py").write_text(BLOCKS)
    monkeypatch.setattr("safmn.imports._imported", {})
    find(ARCH_REGISTRY, "SMFANet")  # ours is registered
    monkeypatch.setattr(ARCH_REGISTRY, "_obj_map", dict(ARCH_REGISTRY._obj_map))  # and again after this test
    imports.allow(imports.import_named("their_smfanet.py"))
    section = {"type": "SMFANet", "dim": 12}
    network = find(ARCH_REGISTRY, "SMFANet")(dim=12)
    origin = weights.origin_of(section, scale=2, imports=["their_smfanet.py"])
    weights.save_weights(tmp_path / "a.pth", params=network.state_dict(), metadata=origin.metadata())
    ours = weights.origin_of({"type": "SAFMN"}, scale=4, imports=["their_smfanet.py"])
    assert ours.imports == []  # a network of ours needs no file of the user's
    del ARCH_REGISTRY._obj_map["SMFANet"]
    sys.modules.pop("their_smfanet")
    monkeypatch.setattr("safmn.imports._imported", {})
    loaded = weights.load_network(tmp_path / "a.pth")
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(image), network(image))


class Normalised(Plain):
    """Adds its input's mean, so that a wrong normalisation shows."""

    def forward(self, x: Tensor) -> Any:
        return nn.functional.interpolate(x, scale_factor=4.0) * 2


def test_methods_follow_inheritance_and_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``safmn bench`` and ``compare`` read ``base``, null arguments, and the normalisation of the training set."""
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Normalised", Normalised)
    (tmp_path / "base.yml").write_text(
        "scale: 4\nnetwork_g: {type: Normalised, scale: 4, dim: 12}\n"
        "datasets: {train: {type: PairedImageDataset, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}\n"
    )
    (tmp_path / "mine.yml").write_text("base: base.yml\nnetwork_g: {dim: ~}\n")
    method = _from_option_file(str(tmp_path / "mine.yml"), torch.device("cpu"))
    assert method.network is not None
    assert (method.scale, method.network.halo) == (4, 0)
    assert method.section == {"type": "Normalised", "scale": 4}
    grey = torch.full((1, 3, 8, 8), 0.75)  # (0.75 - 0.5) / 0.5 = 0.5; twice that is 1, which is 1 * 0.5 + 0.5
    assert torch.allclose(method.network(grey), torch.ones(1, 3, 32, 32))


def test_a_network_with_an_unknown_argument_is_compared_only_if_the_user_is_tolerant(tmp_path: Path) -> None:
    """Otherwise a misspelt argument would give the cost of another network."""
    text = "scale: 4\nnetwork_g: {type: SAFMN, dim: 8, n_blocks: 1, ffn_scle: 2.0, upscaling_factor: 4}\n"
    file = tmp_path / "misspelt.yml"
    file.write_text(text)
    with pytest.raises(OptionError, match=r"line 2: network_g\.ffn_scle: .*Did you mean 'ffn_scale'"):
        open_methods([str(file)])
    assert open_methods([str(file)], tolerant=True)[0].scale == 4
    file.write_text(f"tolerant: true\n{text}")
    assert open_methods([str(file)])[0].section == {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 4}


def test_own_sets_are_tested_as_the_option_file_says(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    pair = f"Mine={images / 'val/hr'},{images / 'val/lr'}"
    metric = "val:metrics:error={type: calculate_max_error, crop_border: 2, better: lower}"
    options = ["-opt", "options.yml", "--set", pair, "--force_yml", metric]
    assert testing.main([*options, "val:self_ensemble=true", "--tile", "16"]) == 0
    out, err = capfd.readouterr()
    assert "exact tiles with 2 pixels around them" in err
    [header, _, plain, ensemble] = [line for line in out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")][1:-1] == ["set", "images", "psnr", "ssim", "error"]
    assert "Mine (self-ensemble)" in ensemble
    assert testing.main(options) == 0
    assert plain.split("|", 2)[2] in capfd.readouterr().out  # tiles change nothing


def test_the_results_of_own_sets_are_named_by_the_option_file_and_kept(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test with a changed value does not overwrite the one before it, and says what it was."""
    monkeypatch.chdir(trained)
    command = ["-opt", "options.yml", "--set", f"Mine={images / 'val/hr'},{images / 'val/lr'}", "--force_yml"]
    named = [*command, "name=kept", f"path:pretrain_network_g={LATEST}"]
    assert testing.main([*named, "manual_seed=3"]) == 0
    assert testing.main([*named, "manual_seed=4", "--tile", "16"]) == 0
    reports = [json.loads(path.read_text()) for path in Path("results").glob("kept*/metrics.json")]
    assert sorted((report["options"]["manual_seed"], report["tile"]) for report in reports) == [(3, None), (4, 16)]
    assert testing.main([*command, "path:results_root=elsewhere", "--debug"]) == 0
    assert Path("elsewhere/debug_tiny/metrics.json").exists()


def test_an_option_file_is_a_network_for_every_command(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    pair = f"Mine={images / 'val/hr'},{images / 'val/lr'}"
    assert testing.main(["-opt", "options.yml", "--weights", LATEST]) == 0
    assert testing.main(["-opt", "options.yml"]) == 0
    assert testing.main(["-opt", "options.yml", "--set", pair]) == 0
    assert testing.main(["--weights", LATEST, "--set", pair]) == 0
    assert capfd.readouterr().out.count("| Mine") == 2
    assert export.main(["-opt", "options.yml", "-o", "own.pt"]) == 0
    (trained / "only.yml").write_text(
        "imports: [own_parts.py]\nscale: 2\nnetwork_g: {type: OwnOfFiles, dim: 12}\n"
    )  # without a run
    photo = str(next((images / "val/lr").glob("*.png")))
    assert upscale.main([photo, "-o", "only.png", "-opt", "only.yml"]) == 2
    assert "give --weights" in capfd.readouterr().err
    assert upscale.main([photo, "-o", "only.png", "-opt", "only.yml", "--weights", LATEST]) == 0
    assert upscale.main([photo, "-o", "no.png", "-opt", "only.yml", "--force_yml", "scale=3", "--weights", LATEST]) == 2
    assert "scale is 3" in capfd.readouterr().err
    assert _from_option_file("options.yml", torch.device("cpu")).source == LATEST  # in tables and measurements, too
    network = load_named(LATEST, "only.yml")
    assert (network.scale, network.window, network.halo) == (2, 1, 2)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin(type="SpyNet", arguments={"load_path": "/etc/hostname"}, scale=1), "names a file"),
        (Origin(type="EDSR", arguments={"num_feat": 10**6, "num_block": 10**3}, scale=2), "more than|cannot be built"),
        (Origin(type="Nowhere", scale=2), "Nowhere.*--imports"),
        (Origin(type="Nowhere", scale=2, imports=[Code(name="os")]), "Nowhere.*--imports"),
        (Origin(type="Nowhere", scale=2, imports=[Code(name="a\0.py", files={"../x": "0"})]), "Nowhere.*--imports"),
    ],
)
def test_a_hostile_note_does_nothing(origin: Origin, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    weights.save_weights(path, params={"unlike.any.other": torch.zeros(2, 2)}, metadata=origin.metadata())
    with pytest.raises(WeightsError, match=words):
        weights.load_network(path)


def test_a_damaged_note_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = find(ARCH_REGISTRY, "SAFMN")(dim=8, n_blocks=1, upscaling_factor=2)
    for name in ("a.pth", "a.safetensors"):
        weights.save_weights(tmp_path / name, params=network.state_dict(), metadata={"safmn": "{"})
        assert type(weights.load_network(tmp_path / name)) is type(network)
    assert "is ignored" in caplog.text


# --- identity of code -------------------------------------------------------------------------------------------------


def test_the_files_of_code_are_those_that_it_imports(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    for name, text in {
        "mine.py": "import os, torch\nfrom package.part import x\nimport alone\nfrom safmn import y\n",
        "alone.py": "import mine\n",
        "other.py": "",
        "package/__init__.py": "from . import deep\n",
        "package/part.py": "from .deep import z\nfrom .. import nothing\n",
        "package/deep.py": "",
        "safmn.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    wanted = {"mine.py", "alone.py", "package/__init__.py", "package/part.py", "package/deep.py"}
    files = code_identity.files_of(str(tmp_path / "mine.py"))
    assert files.keys() == wanted
    assert next(iter(files)) == "mine.py"
    named = code_identity.files_of("package.part", tmp_path)
    assert named.keys() == {"package/__init__.py", "package/part.py", "package/deep.py"}
    before = code_identity.digest_of(files)
    (tmp_path / "other.py").write_text("1")
    assert code_identity.digest_of(files) == before
    (tmp_path / "package/deep.py").write_bytes(b"1\r\n")
    changed = code_identity.digest_of(files)
    assert changed != before
    (tmp_path / "package/deep.py").write_bytes(b"1\n")
    assert code_identity.digest_of(files) == changed
    assert code_identity.files_of("json.tool")  # an installed package
    assert code_identity.files_of("nowhere.at.all") == {}
