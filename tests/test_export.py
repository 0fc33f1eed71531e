"""Exported files give the upscaler's result at every size; a failed export raises an error and leaves no file."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn import functional

import safmn
from safmn import compat
from safmn.archs import FAMILY
from safmn.cli.export import main
from safmn.errors import OptionError
from safmn.imaging import imresize
from safmn.inference import export
from safmn.inference.export import FORMATS, ExportError, equal_ranges, export_network, quantize
from safmn.inference.export.ncnn_graph import UPSCAYL_LAYERS, for_tiles
from safmn.inference.export.verification import run_opencv
from safmn.inference.onnx_graph import folded, onnx_bytes
from safmn.metrics import psnr
from safmn.registry import ARCH_REGISTRY, build

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = {"SAFMN_BCIE": {"dim": 8, "n_blocks": 1, "num_layers": 1}, "SAFMNv3": {"dim": 16, "num_blocks": 1}}
SIZES = [(48, 64), (37, 53), (7, 9), (1, 33), (65, 31)]  # (height, width)


def photo(height: int, width: int, batch: int = 1) -> Tensor:
    image = torch.from_numpy(data.astronaut()[20 : 20 + height, 180 : 180 + width].copy())
    return (image.permute(2, 0, 1)[None].float() / 255).repeat(batch, 1, 1, 1)  # (batch, 3, height, width)


def small(kind: str) -> nn.Module:
    torch.manual_seed(0)
    section = {"type": kind, **SMALL.get(kind, {"dim": 24, "n_blocks": 1})}
    return build(ARCH_REGISTRY, section).eval().requires_grad_(False)


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def assert_same(run: Callable[[Tensor], Tensor], network: nn.Module, size: tuple[int, int]) -> None:
    """Assert that the file's result, clamped, equals the upscaler's."""
    x = photo(*size)
    expected = safmn.Upscaler(network, backend="eager", tile=0)(x)
    assert float((run(x).clamp(0, 1) - expected).abs().max()) <= 1e-4


@pytest.fixture(scope="module")
def x2() -> nn.Module:
    return safmn.load_network("safmn-x2")


def test_onnx_of_the_weights_that_come_with_the_package(x2: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "x2.onnx"
    exported = export_network(x2, file)
    assert exported.files == (file,)
    assert list(tmp_path.iterdir()) == [file]
    run = run_onnx(file)
    for size in SIZES:
        assert_same(run, x2, size)
    both = run(photo(19, 30, batch=2))
    assert torch.equal(both[0], both[1])


def test_onnx_of_published_weights(weights_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "x2.onnx"
    assert main(["--weights", str(weights_dir / "safmn_x2_official_fp16.safetensors"), "-o", str(file)]) == 0
    network = safmn.load_network(weights_dir / "safmn_x2_official_fp16.safetensors")
    run = run_onnx(file)
    for size in SIZES:
        assert_same(run, network, size)


@pytest.mark.parametrize("kind", [network.__name__ for network in FAMILY])
@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_every_network_at_odd_sizes(kind: str, name: str, tmp_path: Path) -> None:
    network, form = small(kind), FORMATS[name]
    file = tmp_path / f"small{form.ending}"
    export_network(network, file)
    for size in ((37, 53), (1, 1)):
        assert_same(form.open(file), network, size)


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_endings_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    target = tmp_path / f"A{FORMATS[name].ending.upper()}"
    assert export_network(small("SAFMN"), target).files[0] == target
    assert target.is_file()


def test_onnx_contains_metadata(tmp_path: Path) -> None:
    export_network(small("SAFMN"), tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["arguments"]) == {"dim": 24, "n_blocks": 1, "ffn_scale": 2.0, "upscaling_factor": 4}
    assert (facts["network"], facts["scale"], facts["window"], facts["tile_halo"]) == ("SAFMN", "4", "8", "18")
    assert facts["opset"] == str(model.opset_import[0].version) == "18"
    assert model.producer_version == safmn.__version__


def test_size_of_the_output_follows_from_that_of_the_input(tmp_path: Path) -> None:
    """vs-mlrt (VapourSynth) needs this: it sets the clip's size in the graph and reads the output's size."""
    export_network(small("SAFMN"), tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx")
    shape = model.graph.input[0].type.tensor_type.shape
    for axis, length in ((0, 1), (2, 361), (3, 635)):
        shape.dim[axis].dim_value = length
    inferred = onnx.shape_inference.infer_shapes(model).SerializeToString()
    session = onnxruntime.InferenceSession(inferred, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [1, 3, 4 * 361, 4 * 635]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_fixed_size(name: str, tmp_path: Path) -> None:
    network, form = small("SAFMNPP"), FORMATS[name]
    file = tmp_path / f"small{form.ending}"
    assert export_network(network, file, size=(21, 30)).sizes == ((21, 30),)
    run = form.open(file)
    assert_same(run, network, (21, 30))
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        run(photo(24, 32))


FIXED = [(37, 53), (48, 64), (1, 1), (3, 5), (5, 40), (50, 7)]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(network.__name__, marks=() if network.__name__ == "SAFMNv3" else pytest.mark.slow)
        for network in FAMILY
    ],
)
def test_fixed_size_in_opencv(kind: str, tmp_path: Path) -> None:
    """The file has no arithmetic on shapes, OpenCV's DNN loads it, and the results are the upscaler's."""
    network, file = small(kind), tmp_path / "small.onnx"
    for size in FIXED:
        assert export_network(network, file, size=size).notes == ()
        operations = {node.op_type for node in onnx.load(file).graph.node}
        assert not operations & {"Shape", "Constant", "ConstantOfShape", "Range", "Mod", "Cast", "Gather", "Identity"}
        assert_same(run_opencv(file), network, size)
        assert_same(run_onnx(file), network, size)
        facts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert facts["input"].startswith(f"(1, 3, {size[0]}, {size[1]})")


def test_problems_with_opencv_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "safmn.inference.export.verification.run_opencv", lambda path: lambda x: torch.zeros(1, 3, 32, 32)
    )
    (note,) = export_network(small("SAFMN"), tmp_path / "a.onnx", size=(8, 8)).notes
    assert re.search(r"OpenCV's DNN .* wrong", note)

    def fail(path: Path) -> None:
        raise cv2.error("no such layer")

    monkeypatch.setattr("safmn.inference.export.verification.run_opencv", fail)
    assert main(["--size", "8x8", "-o", str(tmp_path / "b.onnx")]) == 0
    assert re.search("OpenCV's DNN .*: no such layer", capsys.readouterr().out)


def test_folding_keeps_what_depends_on_the_image() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.interpolate(x, size=x.shape[2:]) * torch.arange(x.shape[3]) + x.max()

    content = folded(onnx_bytes(Sizes(), torch.rand(1, 3, 4, 6), dynamic=False))
    assert not {node.op_type for node in onnx.load_from_string(content).graph.node} & {"Shape", "Range", "Constant"}
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = photo(4, 6)
    assert torch.allclose(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), Sizes()(x))


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_batches_and_extreme_sizes(name: str, tmp_path: Path) -> None:
    network, file = small("LightSAFMNPP"), tmp_path / f"small{FORMATS[name].ending}"
    export_network(network, file)
    run = FORMATS[name].open(file)
    for size in ((1, 1), (3, 5), (2, 300), (243, 317)):
        assert_same(run, network, size)
    three = torch.stack([photo(19, 30)[0], photo(30, 19)[0].transpose(1, 2), torch.zeros(3, 19, 30)])
    assert torch.allclose(run(three), torch.cat([run(image[None]) for image in three]), atol=1e-5)


def test_a_missing_runtime_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(FORMATS["onnx"]), "runtime", ("no_such_runtime", "onnx"))
    file = tmp_path / "small.onnx"
    exported = export_network(small("SAFMN"), file)
    assert (exported.sizes, exported.error) == ((), None)
    assert main(["-o", str(file)]) == 0
    out = capsys.readouterr().out
    assert "NOT CHECKED" in out
    assert "no_such_runtime" in out
    assert "checked at" not in out


def test_openvino(x2: nn.Module, tmp_path: Path) -> None:
    exported = export_network(x2, tmp_path / "x2.xml")
    assert [file.name for file in exported.files] == ["x2.xml", "x2.bin"]
    assert '<tile_halo value="130"' in (tmp_path / "x2.xml").read_text()
    run = FORMATS["openvino"].open(tmp_path / "x2.xml")
    for size in SIZES[:3]:
        assert_same(run, x2, size)


@pytest.mark.slow
def test_ncnn_at_every_size(x2: nn.Module, tmp_path: Path) -> None:
    """In the past, ncnn's errors were 17 at 50x50 and 151 at 220x220, although status and shape were right."""
    exported = export_network(x2, tmp_path / "x2.ncnn.param")
    assert {file.name for file in exported.files} == {"x2.ncnn.param", "x2.ncnn.bin", "x2.ncnn.json"}
    facts = json.loads((tmp_path / "x2.ncnn.json").read_text())
    assert facts["input"] == "in0: (3, height, width), RGB, values in [0, 1]"
    run = FORMATS["ncnn"].open(tmp_path / "x2.ncnn.param")
    for size in ((48, 64), (50, 50), (220, 220), (37, 53), (1, 1), (1, 2), (3, 5), (7, 9), (8, 200), (200, 2)):
        assert_same(run, x2, size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [network.__name__ for network in FAMILY])
def test_every_network_in_ncnn(kind: str, tmp_path: Path) -> None:
    network = small(kind)
    export_network(network, tmp_path / "small.param")
    run = FORMATS["ncnn"].open(tmp_path / "small.param")
    for size in ((50, 50), (37, 53), (1, 1), (2, 17), (7, 9), (16, 9), (8, 200)):
        assert_same(run, network, size)
    with pytest.MonkeyPatch.context() as patch:  # ncnn's defaults: weights in 16 bits, if the CPU supports it
        patch.setattr("safmn.inference.export.formats.NCNN_OPTIONS", {})
        run = FORMATS["ncnn"].open(tmp_path / "small.param")
        x = photo(37, 53)
        expected = safmn.Upscaler(network, backend="eager", tile=0)(x)
        assert float((run(x).clamp(0, 1) - expected).abs().max()) <= 1e-2


def test_ncnn_of_a_network_with_a_variance_over_the_frame(tmp_path: Path) -> None:
    network = small("SAFMNv3")
    export_network(network, tmp_path / "v3.param")
    run = FORMATS["ncnn"].open(tmp_path / "v3.param")
    for size in ((50, 50), (37, 53), (1, 1), (7, 9)):
        assert_same(run, network, size)


class Variance(nn.Module):
    """A network with an operation that pnnx does not support."""

    scale = 1

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.var(x, dim=(2, 3), keepdim=True)


def test_an_operation_that_pnnx_does_not_support_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Variance .*ncnn.* torch\.var"):
        export_network(Variance(), tmp_path / "v.param")
    assert not list(tmp_path.iterdir())


def as_upscayl(run: Callable[[Tensor], Tensor], image: np.ndarray, scale: int, tile: int) -> np.ndarray:
    """Upscale an 8-bit RGB image like Upscayl's engine: in tiles with 10 mirrored pixels around them, one by one."""
    height, width = image.shape[:2]
    around = np.pad(image, ((10, 10), (10, 10), (0, 0)), "reflect")
    result = np.zeros((height * scale, width * scale, 3), np.uint8)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = min(tile, height - top), min(tile, width - left)
            piece = around[top : top + rows + 20, left : left + columns + 20]
            y = run(torch.from_numpy(np.ascontiguousarray(piece)).permute(2, 0, 1)[None] / 255)[0]
            y = y[:, 10 * scale : (10 + rows) * scale, 10 * scale : (10 + columns) * scale]
            levels = (y.permute(1, 2, 0).numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
            result[top * scale : (top + rows) * scale, left * scale : (left + columns) * scale] = levels
    return result


def test_profile_for_upscayl(x2: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models" / "safmn-x2.param"
    assert main(["--weights", "safmn-x2", "-o", str(file), "--format", "ncnn", "--profile", "upscayl"]) == 0
    assert "folder named models" in capsys.readouterr().out
    lines = [line.split() for line in file.read_text().splitlines()[2:]]
    assert {line[0] for line in lines} <= UPSCAYL_LAYERS
    assert lines[0][:1] + lines[0][4:5] == ["Input", "data"]
    assert "output" in lines[-1]
    run = FORMATS["ncnn"].open(file)
    upscaler = safmn.Upscaler(x2, backend="eager", tile=0)
    image = data.astronaut()[20:145, 180:318]  # tiles of at most 32 + 20 pixels, which are not multiples of 8
    result = as_upscayl(run, image, 2, 32).astype(int)
    piecewise = as_upscayl(upscaler, image, 2, 32).astype(int)
    assert int(np.abs(result - piecewise).max()) <= 1
    whole = as_upscayl(run, image, 2, 200).astype(int) - upscaler(np.ascontiguousarray(image)).astype(int)
    assert float(np.abs(whole).mean()) < 0.5


def test_profile_for_upscayl_fails_below_the_window(tmp_path: Path) -> None:
    """Its layers cannot mirror so small an image, so ncnn must return an error. Upscayl's tiles are larger."""
    network = small("SAFMN")
    export_network(network, tmp_path / "safmn-x4.param", profile="upscayl")
    run = FORMATS["ncnn"].open(tmp_path / "safmn-x4.param")
    assert_same(run, network, (8, 21))
    for size in ((7, 30), (30, 7), (1, 1), (3, 8)):
        with pytest.raises(ExportError, match="status -100"):
            run(photo(*size))


@pytest.mark.parametrize(
    ("name", "weights", "wrong"),
    [
        ("safmn.param", "safmn-x2", "x4"),
        ("my-x4.param", "safmn-x2", "x4"),
        ("x1-safmn-x2.param", "safmn-x2", "x1"),
        ("SAFMN-X2.param", "safmn-x2", "x4"),
        ("2x3.param", "safmn-x3", "x2"),
    ],
)
def test_profile_needs_the_scale_in_the_name(name: str, weights: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"{name}: .*scale {wrong} .*{weights}\.param"):
        export_network(safmn.load_network(weights), tmp_path / name, profile="upscayl")
    assert not list(tmp_path.iterdir())


def test_profile_supports_one_format_and_certain_scales_and_layers(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'upscayl': onnx files"):
        export_network(small("SAFMN"), tmp_path / "a-x4.onnx", profile="upscayl")
    with pytest.raises(OptionError, match="x2, x3 and x4, not x1"):
        export_network(small("SAFMN_BCIE"), tmp_path / "a-x1.param", profile="upscayl")
    with pytest.raises(ValueError, match="lacks the layer Flip"):
        for_tiles("7767517\n2 2\nInput i 0 1 in0\nFlip f 1 1 in0 out0 -23300=1,1\n", 1, 8)


@pytest.mark.parametrize(("name", "precision"), [("onnx", "fp16"), ("openvino", "fp16"), ("torch", "bf16")])
def test_half_precision_is_accurate_and_smaller(name: str, precision: str, tmp_path: Path) -> None:
    network, form = small("SAFMN"), FORMATS[name]
    sizes = {}
    for each in ("fp32", precision):
        exported = export_network(network, tmp_path / f"{each}{form.ending}", precision=each)
        sizes[each] = sum(file.stat().st_size for file in exported.files)
    assert 1e-6 < exported.error < 5e-3
    assert sizes[precision] < sizes["fp32"]


@pytest.mark.slow
def test_int8_loses_little_and_is_smaller(x2: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on a photograph that is not one of the calibration's."""
    monkeypatch.setattr(quantize, "LIMIT", 0.3)  # all layers at once
    export_network(x2, tmp_path / "fp32.onnx")
    exported = export_network(x2, tmp_path / "int8.onnx", precision="int8")
    assert 1e-4 < exported.error < 0.1
    assert re.match(r"8 of 8 dense convolutions in 8 bits, calibrated on 5 photographs, ", exported.notes[0])
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * (tmp_path / "fp32.onnx").stat().st_size
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "int8.onnx").metadata_props}
    assert facts["precision"] == "int8"
    quantised = facts["int8_layers"].split()
    types = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert types.count("QuantizeLinear") == 2 * len(quantised) > 0
    gt = data.immunohistochemistry()[:200, :200]
    lq = imresize(gt, 1 / 2)
    x = torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 255
    values = []
    for name in ("fp32.onnx", "int8.onnx"):
        made = run_onnx(tmp_path / name)(x)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        values.append(psnr(made, gt, crop=2, y=True))
    assert 0 < values[0] - values[1] < 0.1


@pytest.mark.parametrize("name", ["SAFMN", "SAFMNPP"])  # with a norm before its convolutions, and without
def test_equal_ranges_change_nothing_else(name: str, tmp_path: Path) -> None:
    network, x = small(name), photo(24, 32)
    for number, parameter in enumerate(network.parameters()):  # ranges that differ
        torch.manual_seed(number)
        parameter.data *= torch.rand(parameter.shape[:1]).view(-1, *[1] * (parameter.ndim - 1)) * 3
        parameter.data += 0.05 * torch.randn(parameter.shape)  # a sum with zeros is not exported
    export_network(network, tmp_path / "plain.onnx")
    layers = quantize._candidates(tmp_path / "plain.onnx")
    model = onnx.load(tmp_path / "plain.onnx")
    equal_ranges.equalise(model, layers, [x.numpy()])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "equal.onnx")
    plain, equal = (run_onnx(tmp_path / f"{each}.onnx")(x) for each in ("plain", "equal"))
    assert (plain - equal).abs().max() < 1e-5 * plain.abs().max()
    nodes = {node.name: node for node in model.graph.node}
    assert any(each.endswith("/equalised/Mul") for each in nodes) == (name == "SAFMNPP")
    ranges = equal_ranges._ranges(model, {nodes[each].input[0] for each in layers}, [x.numpy()])
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert layers
    for each in layers:
        weights = np.abs(constants[nodes[each].input[1]]).max(axis=(0, 2, 3))
        ratios = ranges[nodes[each].input[0]] / weights
        assert ratios.max() / ratios.min() < 1.001


def test_channels_without_values_keep_their_weights() -> None:
    factors = equal_ranges._factors(np.array([0, 4, 1, 9], np.float32), np.array([1, 1, 0, 1], np.float32))
    assert factors.tolist() == pytest.approx([1, np.sqrt(2 / 3), 1, np.sqrt(3 / 2)])
    assert equal_ranges._factors(np.zeros(2, np.float32), np.ones(2, np.float32)).tolist() == [1, 1]


def calibration(scale: int) -> quantize.Calibration:
    lr = photo(24, 24).numpy()
    gt = (photo(24, 24)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    gt = gt.repeat(scale, 0).repeat(scale, 1)
    return quantize.Calibration([lr], [(lr, gt)], "one photograph")


@pytest.mark.parametrize(
    ("losses", "taken", "loss"),
    [
        ({"a": 0.01, "b": 0.02, "c": 0.03}, ["a", "b", "c"], 0.06),
        ({"a": 0.09, "b": 0.02, "c": 0.03}, ["b", "c"], 0.05),
        ({"a": 0.09, "b": -0.01, "c": 0.06}, ["b", "c"], 0.05),
        ({"a": 0.2, "b": 0.2, "c": 0.2}, [], 0.2),
    ],
)
def test_layers_that_lose_too_much_stay(
    losses: dict[str, float], taken: list[str], loss: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Trial:
        def __init__(self, *_: object) -> None:
            pass

        def loss(self, layers: list[str]) -> float:
            return sum(losses[name] for name in layers)

        def write(self, layers: list[str], target: Path) -> None:
            target.write_text(" ".join(layers), encoding="utf-8")

    monkeypatch.setattr(quantize, "Trial", Trial)
    monkeypatch.setattr(quantize, "write_equalised", lambda *_: None)
    monkeypatch.setattr(quantize, "LIMIT", 0.07)
    monkeypatch.setattr(quantize, "_candidates", lambda source: list(losses))
    outcome = quantize.quantise(tmp_path / "in", tmp_path / "out", 2, calibration(2))
    assert sorted(outcome.layers) == taken
    assert sorted(outcome.kept) == sorted(set(losses) - set(taken))
    if taken:
        assert outcome.loss == pytest.approx(loss)
        assert sorted((tmp_path / "out").read_text(encoding="utf-8").split()) == taken
    else:
        assert not (tmp_path / "out").exists()


def test_what_cannot_be_int8_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("safmn.inference.export.formats.calibration_images", lambda scale, size: calibration(scale))
    with pytest.raises(ExportError, match=r"Thin cannot have dense convolutions in 8 bits: it has none\. Use fp16"):
        export_network(Thin(), tmp_path / "thin.onnx", precision="int8")
    monkeypatch.setattr(quantize, "LIMIT", -100.0)
    with pytest.raises(ExportError, match=r"SAFMN cannot have dense convolutions in 8 bits: each loses more than"):
        export_network(small("SAFMN"), tmp_path / "small.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


class Thin(nn.Module):
    """A network whose only convolution reads the image."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.only(x)
        return image


def test_calibration_has_photographs_and_drawings_of_the_size() -> None:
    images = quantize.calibration_images(2, (20, 30))
    assert len(images.inputs) == 5 + 4 + 16
    assert {image.shape for image in images.inputs} == {(1, 3, 20, 30)}
    assert len(images.photographs) == 6
    assert {gt.shape for _, gt in images.photographs} == {(40, 60, 3)}
    assert all(image.min() >= 0 and image.max() <= 1 and image.dtype == np.float32 for image in images.inputs)


@pytest.mark.parametrize("name", ["tflite", "coreml"])
def test_formats_of_phones_want_one_size_and_their_converter(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{FORMATS[name].ending}"
    with pytest.raises(OptionError, match=f"{name} files take images of one size: give it"):
        export_network(small("SAFMN"), file)
    if FORMATS[name].missing() is None:
        pytest.skip("the converter is installed")
    with pytest.raises(OptionError, match=r"is not installed: .*pip install '(litert-torch|coremltools)>="):
        export_network(small("SAFMN"), file, size=(16, 24))


@pytest.mark.slow
def test_litert(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    network = small("SAFMN")
    exported = export_network(network, tmp_path / "small.tflite", size=(21, 30))
    assert exported.error is not None
    assert_same(FORMATS["tflite"].open(tmp_path / "small.tflite"), network, (21, 30))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_coreml(precision: str, tmp_path: Path) -> None:
    tool = pytest.importorskip("coremltools")
    file = tmp_path / "small.mlpackage"
    for _ in range(2):  # the second time it replaces a folder
        exported = export_network(small("SAFMN"), file, size=(21, 30), precision=precision)
    assert list(tmp_path.iterdir()) == [file]
    description = tool.models.MLModel(str(file), skip_model_load=True).get_spec().description
    assert list(description.output[0].type.multiArrayType.shape) == [1, 3, 84, 120]
    assert description.metadata.userDefined["scale"] == "4"
    if sys.platform == "darwin":
        assert exported.error is not None
    else:
        assert "NOT CHECKED: Core ML runs only on macOS" in exported.notes[0]


def test_a_folder_of_something_else_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(type(FORMATS["coreml"]), "packages", ())
    folder = tmp_path / "mine.mlpackage"
    folder.mkdir()
    (folder / "photo.png").write_text("mine")
    with pytest.raises(OptionError, match=r"mine\.mlpackage is a folder that no export wrote"):
        export_network(small("SAFMN"), folder, size=(16, 24))
    assert (folder / "photo.png").read_text() == "mine"


def test_foreign_networks(tmp_path: Path) -> None:
    compat.repair_torchvision()  # which spandrel imports
    pytest.importorskip("spandrel")
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    torch.manual_seed(0)
    torch.save(SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2).state_dict(), tmp_path / "compact.pth")
    foreign = safmn.load_network(tmp_path / "compact.pth")
    export_network(foreign, tmp_path / "compact.onnx")
    assert_same(run_onnx(tmp_path / "compact.onnx"), foreign, (13, 22))


def test_a_wrong_file_is_removed_and_the_old_one_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "small.onnx"
    file.write_text("old")
    right = FORMATS["onnx"].open
    monkeypatch.setattr(FORMATS["onnx"], "open", lambda path: lambda x: right(path)(x) + 2e-4)
    with pytest.raises(ExportError, match=r"wrong .*16x8 pixels, by 0\.0002; .*removed"):
        export_network(small("SAFMN"), file)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


class EvenOnly(nn.Module):
    """A network whose code supports only even widths, as foreign networks may."""

    scale = 1

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise RuntimeError(f"odd width {x.shape[-1]}\nand much more about it")
        return x + 0


class OneByOne(nn.Module):
    """A network that takes one image at a time, as SeemoRe does; bright images go through another layer."""

    scale = 1

    def __init__(self, chooses: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
        self.chooses = chooses

    def forward(self, x: Tensor) -> Tensor:
        index = int(x.mean() > 0.3) if self.chooses else 0
        result: Tensor = self.layers[index](x.squeeze(0)[None] if len(x) == 1 else x.squeeze(0)[:, 0])
        return result


def test_a_network_that_takes_one_image_at_a_time_is_exported(tmp_path: Path) -> None:
    exported = export_network(OneByOne(chooses=False), tmp_path / "a.onnx")
    assert exported.error is not None
    assert any("one image at a time" in note for note in exported.notes)


@pytest.mark.parametrize("size", [None, (16, 16)])
def test_a_file_that_always_takes_the_layers_of_one_image_is_refused(
    size: tuple[int, int] | None, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="wrong for an image"):
        export_network(OneByOne(chooses=True), tmp_path / "a.onnx", size=size)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("onnx", "a fixed size, for example --size 256x256, or another format"), ("torch", "another format")],
)
def test_an_error_of_the_network_is_named_and_leaves_no_file(name: str, advice: str, tmp_path: Path) -> None:
    file = tmp_path / f"even{FORMATS[name].ending}"
    message = rf"^EvenOnly .*{name}: .*odd width \d+\. Try {advice}\.$"
    with pytest.raises(ExportError, match=message):
        export_network(EvenOnly(), file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["write", "open"])
def test_an_error_of_a_library_is_named_and_the_old_file_stays(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("Unsupported operator")

    file = tmp_path / "small.onnx"
    file.write_text("old")
    monkeypatch.setattr(FORMATS["onnx"], method, fail)
    with pytest.raises(ExportError, match=r"^SAFMN .*onnx: Unsupported operator"):
        export_network(small("SAFMN"), file)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_a_file_that_gives_nan_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = FORMATS["torch"].open
    monkeypatch.setattr(FORMATS["torch"], "open", lambda path: lambda x: right(path)(x) * float("nan"))
    with pytest.raises(ExportError, match="by nan"):
        export_network(small("SAFMN"), tmp_path / "small.pt")


@pytest.mark.parametrize(("name", "others"), [("m.xml", ["m.bin"]), ("m.param", ["m.bin"]), ("m.param", ["m.json"])])
def test_unrelated_files_beside_the_output_are_not_overwritten(name: str, others: list[str], tmp_path: Path) -> None:
    for other in others:
        (tmp_path / other).write_text("mine")
    with pytest.raises(OptionError, match=rf"{others[0]} exists.*m\.\w+\.{name[2:]}"):
        export_network(small("SAFMN"), tmp_path / name)
    assert [(tmp_path / other).read_text() for other in others] == ["mine"] * len(others)
    assert not (tmp_path / name).exists()


def test_network_does_not_change(tmp_path: Path) -> None:
    network = small("SAFMN").train().requires_grad_(True)
    export_network(network, tmp_path / "small.pt", precision="fp16")
    assert network.training
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.onx"], "'.onx'; known: onnx (.onnx)"),
        (["-o", "a.onnx", "--format", "ncnn"], "ncnn must end in .param"),
        (["-o", "a.onnx", "--precision", "bf16"], "onnx files can be fp32, fp16, int8"),
        (["-o", "a.onnx", "--size", "64"], "--size 64: write WIDTHxHEIGHT"),
        (["-o", "a.onnx", "--size", "0x64"], "at least 1"),
        (["-o", "a.param", "--size", "64x64"], "ncnn files take no fixed size"),
        (["-o", "a.onnx", "--weights", "safmn-x22"], "Did you mean 'safmn-x2'?"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no format 'onx'\. Did you mean 'onnx'\?"):
        export.format_of("onx", "a.onnx")
    assert export.format_of(None, "A.ONNX") is FORMATS["onnx"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("onnx", "onnx"), ("openvino", "openvino"), ("ncnn", "ncnn")):
        with pytest.raises(OptionError, match=rf"pip install '{extra}>="):
            export_network(small("SAFMN"), tmp_path / f"a{FORMATS[name].ending}")


def blocks(language: str) -> list[str]:
    """Return the code blocks of docs/export.md in a language."""
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.slow
def test_the_programs_of_the_page(x2: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands and Python programs of docs/export.md run, in order, and the programs do not need this package."""
    monkeypatch.chdir(tmp_path)
    for line in blocks("sh")[0].splitlines():
        assert main(shlex.split(line)[2:]) == 0
    image = data.astronaut()[:45, 180:246]
    Image.fromarray(image).save("photo.png")
    expected = safmn.Upscaler(x2, backend="eager")(image)
    programs = blocks("python")
    assert len(programs) == 4
    for program in programs:
        assert "safmn." not in program
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
        result = np.asarray(Image.open("photo_x2.png"))
        assert int(np.abs(result.astype(int) - expected.astype(int)).max()) <= 1
        Path("photo_x2.png").unlink()
