"""Exported files give what the upscaler gives, at every size; what cannot be exported is refused and leaves nothing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

import safmn
from safmn.archs import FAMILY
from safmn.cli.export import main
from safmn.errors import OptionError
from safmn.inference import export
from safmn.inference.export import FORMATS, ExportError, export_network
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
    """The file's result, clamped, is the upscaler's."""
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
def test_endings_in_capitals(name: str, tmp_path: Path) -> None:
    target = tmp_path / f"A{FORMATS[name].ending.upper()}"
    assert export_network(small("SAFMN"), target).files[0] == target
    assert target.is_file()


def test_onnx_says_what_it_holds(tmp_path: Path) -> None:
    export_network(small("SAFMN"), tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["arguments"]) == {"dim": 24, "n_blocks": 1, "ffn_scale": 2.0, "upscaling_factor": 4}
    assert (facts["network"], facts["scale"], facts["window"], facts["tile_halo"]) == ("SAFMN", "4", "8", "18")
    assert facts["opset"] == str(model.opset_import[0].version) == "18"
    assert model.producer_version == safmn.__version__


def test_size_of_the_output_follows_from_that_of_the_input(tmp_path: Path) -> None:
    """vs-mlrt (VapourSynth) writes the clip's size into the graph and asks ONNX Runtime for the output's."""
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


def test_openvino(x2: nn.Module, tmp_path: Path) -> None:
    exported = export_network(x2, tmp_path / "x2.xml")
    assert [file.name for file in exported.files] == ["x2.xml", "x2.bin"]
    assert '<tile_halo value="130"' in (tmp_path / "x2.xml").read_text()
    run = FORMATS["openvino"].open(tmp_path / "x2.xml")
    for size in SIZES[:3]:
        assert_same(run, x2, size)


def test_ncnn(x2: nn.Module, tmp_path: Path) -> None:
    exported = export_network(x2, tmp_path / "x2.ncnn.param")
    assert {file.name for file in exported.files} == {"x2.ncnn.param", "x2.ncnn.bin", "x2.ncnn.json"}
    assert "multiples of 8" in json.loads((tmp_path / "x2.ncnn.json").read_text())["input"]
    run = FORMATS["ncnn"].open(tmp_path / "x2.ncnn.param")
    for size in ((48, 64), (8, 40)):
        assert_same(run, x2, size)


def test_ncnn_has_no_variance_over_the_frame(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"SAFMNv3 cannot be converted for ncnn: pnnx does not know torch\.var"):
        export_network(small("SAFMNv3"), tmp_path / "v3.param")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "precision"), [("onnx", "fp16"), ("openvino", "fp16"), ("torch", "bf16")])
def test_half_precision_is_near_and_smaller_or_as_large(name: str, precision: str, tmp_path: Path) -> None:
    network, form = small("SAFMN"), FORMATS[name]
    sizes = {}
    for each in ("fp32", precision):
        exported = export_network(network, tmp_path / f"{each}{form.ending}", precision=each)
        sizes[each] = sum(file.stat().st_size for file in exported.files)
    assert 1e-6 < exported.error < 5e-3
    assert sizes[precision] < sizes["fp32"]


def test_networks_of_others(tmp_path: Path) -> None:
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
    with pytest.raises(ExportError, match=r"wrong for an image of 16x8 pixels, by 0\.0002; it was removed"):
        export_network(small("SAFMN"), file)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


class EvenOnly(nn.Module):
    """A network whose code takes some sizes only, as those of others may."""

    scale = 1

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise RuntimeError(f"odd width {x.shape[-1]}\nand much more about it")
        return x + 0


@pytest.mark.parametrize(("name", "advice"), [("onnx", "a fixed size or another format"), ("torch", "another format")])
def test_what_fails_in_a_format_is_named_and_leaves_nothing(name: str, advice: str, tmp_path: Path) -> None:
    file = tmp_path / f"even{FORMATS[name].ending}"
    message = rf"^EvenOnly cannot be written as {name}: .*odd width \d+\. Try {advice}\.$"
    with pytest.raises(ExportError, match=message):
        export_network(EvenOnly(), file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["write", "open"])
def test_what_fails_in_a_library_is_named_and_the_old_file_stays(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("Unsupported operator")

    file = tmp_path / "small.onnx"
    file.write_text("old")
    monkeypatch.setattr(FORMATS["onnx"], method, fail)
    with pytest.raises(ExportError, match=r"^SAFMN cannot be written as onnx: Unsupported operator"):
        export_network(small("SAFMN"), file)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = FORMATS["torch"].open
    monkeypatch.setattr(FORMATS["torch"], "open", lambda path: lambda x: right(path)(x) * float("nan"))
    with pytest.raises(ExportError, match="by nan"):
        export_network(small("SAFMN"), tmp_path / "small.pt")


@pytest.mark.parametrize(("name", "others"), [("m.xml", ["m.bin"]), ("m.param", ["m.bin"]), ("m.param", ["m.json"])])
def test_files_of_something_else_are_not_overwritten(name: str, others: list[str], tmp_path: Path) -> None:
    for other in others:
        (tmp_path / other).write_text("mine")
    with pytest.raises(OptionError, match=rf"{others[0]} is there and not of this export.*m\.\w+\.{name[2:]}"):
        export_network(small("SAFMN"), tmp_path / name)
    assert [(tmp_path / other).read_text() for other in others] == ["mine"] * len(others)
    assert not (tmp_path / name).exists()


def test_network_is_left_as_it_is(tmp_path: Path) -> None:
    network = small("SAFMN").train().requires_grad_(True)
    export_network(network, tmp_path / "small.pt", precision="fp16")
    assert network.training
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.onx"], "no format has the ending '.onx'; known: onnx (.onnx)"),
        (["-o", "a.onnx", "--format", "ncnn"], "a file in the format ncnn must end in .param"),
        (["-o", "a.onnx", "--precision", "bf16"], "onnx files can be fp32, fp16"),
        (["-o", "a.onnx", "--size", "64"], "--size 64: write WIDTHxHEIGHT"),
        (["-o", "a.onnx", "--size", "0x64"], "at least 1"),
        (["-o", "a.param", "--size", "64x64"], "ncnn files take no fixed size"),
        (["-o", "a.onnx", "--weights", "safmn-x22"], "Did you mean 'safmn-x2'?"),
    ],
)
def test_mistakes(
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


def test_unknown_format_and_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no format 'onx'\. Did you mean 'onnx'\?"):
        export.format_of("onx", "a.onnx")
    assert export.format_of(None, "A.ONNX") is FORMATS["onnx"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("onnx", "onnx"), ("openvino", "openvino"), ("ncnn", "ncnn")):
        with pytest.raises(OptionError, match=rf"pip install '\.\[{extra}\]'"):
            export_network(small("SAFMN"), tmp_path / f"a{FORMATS[name].ending}")


def blocks(language: str) -> list[str]:
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.slow
def test_the_programs_of_the_page(x2: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and every Python program of docs/export.md, in the order of the page, without this package."""
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
