"""The networks of others: golden outputs, counts, recognition, exact tiles, and every door's respect for their form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer_helpers import GOLDEN, WEIGHTS, arguments, entries, golden_state, label, published, registered, small
from torch import Tensor, nn

import safmn
from safmn.archs.complexity import complexity
from safmn.archs.peers import PEERS, Form, InForm, bare, folded, form_of, in_form
from safmn.archs.peers.form import enlarged, enlarging_kernel, luma, with_luma_in_range
from safmn.errors import UserError, WeightsError
from safmn.evaluation.benchmark import plan_of_network
from safmn.evaluation.scoring import evaluate
from safmn.imaging import imresize, rgb_to_y, write_image
from safmn.inference.export import export_network
from safmn.registry import ARCH_REGISTRY, find, import_basicsr
from safmn.weights import load_network, recognise, save_weights

NAMES = list(PEERS)
ENTRIES = entries()
_QUICK = {"ShuffleMixer_tiny", "ECBSR_M4C8_train", "PlainUSR_ultra"}
FINITE = [name for name in NAMES if name != "ECBSR" and in_form(small(name)).halo is not None]  # BasicSR's: no float64


def _marked(entry: dict[str, Any]) -> Any:
    """Return a test's parameter; all but the cheapest entry of each network is slow."""
    quick = (entry["scale"] in (2, None) and entry["params"] < 10**6) or entry["name"] in _QUICK
    return pytest.param(entry, id=label(entry), marks=() if quick else (pytest.mark.slow,))


golden = pytest.mark.parametrize("entry", [_marked(entry) for entry in ENTRIES])
needs_golden = pytest.mark.skipif(not ENTRIES, reason=f"no golden outputs at {GOLDEN}")


@needs_golden
def test_every_golden_network_is_declared() -> None:
    assert {registered(entry) for entry in ENTRIES} <= set(PEERS)


@golden
def test_outputs_names_and_counts_equal_the_golden_data_and_the_weights_are_recognised(entry: dict[str, Any]) -> None:
    network = find(ARCH_REGISTRY, registered(entry))(**arguments(entry)).train(entry.get("mode") == "train")
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == entry["state_dict"]
    parameters = list(network.parameters())
    assert sum(parameter.numel() for parameter in parameters) == entry["params"]
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    assert trainable == entry.get("trainable", entry["params"])
    state = golden_state(entry, network.state_dict())
    network.load_state_dict(state)
    for case in entry["cases"]:
        _check_golden(network, case, entry["float32_error"])
    found = recognise(state, scale=entry["scale"])
    assert (found.type, found.scale) == (registered(entry), entry["scale"] or max(found.scales))


def _check_golden(network: nn.Module, case: dict[str, Any], limit: float) -> None:
    expected = np.load(GOLDEN / case["file"])["output"]
    drawn = np.random.RandomState(case["input"]["randomstate_seed"]).rand(*case["input"]["shape"])
    image = torch.from_numpy((drawn * case["input"].get("times", 1)).astype(np.float32))
    with torch.no_grad():
        output = _at_any_size(network)(image).numpy()
    error = np.abs(output - expected).max() / expected.std()
    assert output.shape == expected.shape
    assert error <= 5 * limit, f"{case['file']}: {error:.2g}, {limit:.2g} in the reference code"


def _at_any_size(network: nn.Module) -> nn.Module:
    """Return BasicSR's SwinIR with the padding that the published code has inside, any other network as it is."""
    return in_form(network) if type(network).__name__ == "SwinIR" else network


@pytest.mark.parametrize("name", NAMES)
def test_declarations_are_complete(name: str) -> None:
    declared = PEERS[name]
    assert declared.paper.authors
    assert declared.paper.title
    assert declared.paper.venue
    assert "/" in declared.code.repository
    assert declared.code.licence
    network = small(name)
    outer = in_form(network)
    assert outer.scale in (2, 3, 4)
    assert isinstance(outer.window, int)
    assert outer.halo is None or outer.halo > 0
    assert bare(outer) is network
    for size in declared.sizes:
        assert declared.scales_of(size)


def test_basicsr_keeps_its_own_networks() -> None:
    """Ours have other names; a network of BasicSR is found by its name and is BasicSR's."""
    import_basicsr()
    for name, declared in PEERS.items():
        module = find(ARCH_REGISTRY, name).__module__
        assert module == declared.where
        assert module.startswith("basicsr." if declared.network is None else "safmn.")


def test_a_users_network_of_the_same_name_is_found_instead(tmp_path: Path) -> None:
    """As with the files of another repository, which register their network themselves; weights still find ours."""

    class SMFANet(nn.Conv2d):
        pass

    ARCH_REGISTRY.register()(SMFANet)
    try:
        assert find(ARCH_REGISTRY, "SMFANet") is SMFANet
        save_weights(tmp_path / "ours.pth", params=PEERS["SMFANet"].network(**PEERS["SMFANet"].small).state_dict())
        assert type(bare(load_network(tmp_path / "ours.pth"))) is PEERS["SMFANet"].network
    finally:
        del ARCH_REGISTRY._obj_map["SMFANet"]
    assert find(ARCH_REGISTRY, "SMFANet") is PEERS["SMFANet"].network


@pytest.mark.parametrize("name", NAMES)
def test_small_networks_are_recognised_and_loaded_from_a_file(name: str, tmp_path: Path) -> None:
    network = small(name)
    save_weights(tmp_path / "weights.pth", params=network.state_dict())
    scale = in_form(network).scale
    loaded = load_network(tmp_path / "weights.pth", scale=scale)
    assert type(bare(loaded)) is type(network)
    image = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), in_form(network)(image), rtol=1e-5, atol=1e-5)
        assert loaded(image).shape == (1, 3, 9 * scale, 7 * scale)


def test_weights_for_several_scales_ask_for_the_scale(tmp_path: Path) -> None:
    save_weights(tmp_path / "vdsr.pth", params=small("VDSR").state_dict())
    with pytest.raises(WeightsError, match=r"vdsr\.pth: weights of VDSR do not say their scale.*--scale"):
        load_network(tmp_path / "vdsr.pth")
    assert load_network(tmp_path / "vdsr.pth", scale=3).scale == 3
    save_weights(tmp_path / "imdn.pth", params=small("IMDN").state_dict())
    with pytest.raises(WeightsError, match=r"imdn\.pth: these weights are for scale 2, not 4"):
        load_network(tmp_path / "imdn.pth", scale=4)


@pytest.mark.parametrize("name", [name for name in NAMES if PEERS[name].fold or hasattr(PEERS[name].network, "folded")])
def test_folding_changes_nothing_but_the_form(name: str) -> None:
    network = small(name)
    plain = folded(network)
    assert plain is not network
    assert type(plain) is not type(network)
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in network.parameters())
    image = torch.rand(2, 3, 21, 18)
    trained = in_form(network.train())
    with torch.no_grad():
        expected = trained(image)
        torch.testing.assert_close(in_form(plain)(image), expected, rtol=0, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("name", FINITE)
def test_a_tile_with_the_halo_equals_the_frame_exactly(name: str) -> None:
    """The core of a tile is right at every position that a tile can have in the grid of the windows."""
    network = in_form(small(name)).double()
    window, scale = network.window, network.scale
    margin, core = -(-network.halo // window) * window, 2 * window
    image = torch.rand(1, 3, 4 * window, 2 * margin + core + 3 * window, dtype=torch.float64)
    start = window
    with torch.no_grad():
        frame = network(image)
        part = network(image[..., start : start + 2 * margin + core])
    left = (start + margin) * scale
    expected = frame[..., left : left + core * scale]
    got = part[..., margin * scale : (margin + core) * scale]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(frame.abs().max()))


@pytest.mark.parametrize("name", FINITE)
def test_an_output_depends_on_nothing_beyond_the_halo_and_almost_on_its_edge(name: str) -> None:
    network = in_form(small(name)).double()
    halo, scale, window = network.halo, network.scale, network.window
    side = 2 * (halo + 2 * window) + window
    reach = 0
    for place in range(window * scale):  # all places in the grids
        image = torch.rand(1, 3, 2 * window, side // window * window, dtype=torch.float64, requires_grad=True)
        pixel = (side // window // 2) * window * scale + place
        network(image)[0, :, 0, pixel].sum().backward()
        touched = image.grad.abs().sum((0, 1, 2)).nonzero().flatten()
        reach = max(reach, pixel // scale - int(touched.min()), int(touched.max()) - pixel // scale)
    assert halo - 2 <= reach <= halo


# The form at each door


def test_enlargement_equals_matlabs() -> None:
    """Compared with :func:`safmn.imaging.imresize`, which is exact to MATLAB's, on floating-point values."""
    image = np.random.default_rng(0).random((13, 9, 3))
    for scale in (2, 3, 4):
        ours = enlarged(torch.from_numpy(image).permute(2, 0, 1)[None], enlarging_kernel(scale, 3).double(), scale)
        expected = imresize(image, scale)
        np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=2e-7)
    row = torch.rand(1, 1, 1, 5)
    assert enlarged(row, enlarging_kernel(2), 2).shape == (1, 1, 2, 10)


@pytest.mark.parametrize("name", ["ESPCN", "VDSR"])
def test_a_network_of_y_changes_only_y(name: str) -> None:
    network = small(name)
    outer = in_form(network)
    scale = outer.scale
    image = np.random.default_rng(0).random((20, 24, 3))
    tensor = torch.from_numpy(image).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        result = outer(tensor)[0].permute(1, 2, 0).double().numpy()
        y = rgb_to_y(image * 255) / 255
        given = imresize(y[..., None], scale)[..., 0] if name == "VDSR" else y
        expected = network(torch.from_numpy(given).float()[None, None])[0, 0].double().numpy()
    np.testing.assert_allclose(rgb_to_y(result * 255) / 255, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    bicubic = imresize(image, scale)
    chroma = (result - rgb_to_y(result * 255)[..., None] / 255) - (bicubic - rgb_to_y(bicubic * 255)[..., None] / 255)
    assert np.ptp(chroma, axis=2).max() < 1e-5 * max(1, np.abs(result).max())  # the same number in R, G and B


def test_a_network_in_255_gets_and_gives_values_in_0_to_1() -> None:
    network = small("RFDN")
    image = torch.rand(1, 3, 20, 17)
    with torch.no_grad():
        torch.testing.assert_close(in_form(network)(image), network(image * 255) / 255, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"), [("SMSR", (9, 7)), ("RFDN", (3, 40)), ("SwinIR", (5, 9)), ("SeemoRe", (1, 1))]
)
def test_images_of_any_size_pass_through_networks_that_do_not_take_them(name: str, size: tuple[int, int]) -> None:
    network = small(name)
    image = torch.rand(1, 3, *size)
    with torch.no_grad(), pytest.raises((UserError, RuntimeError)):
        network(image)
    scale = in_form(network).scale
    for result in (in_form(network)(image), safmn.Upscaler(network, device="cpu", guard=False)(image)):
        assert result.shape == (1, 3, size[0] * scale, size[1] * scale)


@pytest.mark.parametrize("name", ["SRCNN", "RFDN", "SMSR", "PAN", "SwinIR"])
def test_upscaling_in_pieces_honours_the_form(name: str) -> None:
    """Exact where the halo is finite, else blended; the form is the same in all pieces."""
    network = small(name)
    if in_form(network).halo is None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.1)
    image = torch.rand(3, 41, 70)
    whole = safmn.Upscaler(network, device="cpu", backend="eager", tile=0, guard=False)(image)
    cut = safmn.Upscaler(network, device="cpu", backend="eager", tile=32, guard=False)(image)
    with torch.no_grad():
        torch.testing.assert_close(whole, in_form(network)(image[None])[0].clamp(0, 1), rtol=0, atol=2e-5)
    if in_form(network).halo is not None:
        torch.testing.assert_close(cut, whole, rtol=0, atol=2e-5)
    else:
        assert cut.shape == whole.shape
        assert cut.isfinite().all()


def test_the_score_of_y_is_not_rounded_where_the_network_gives_y(tmp_path: Path) -> None:
    """Against a computation by hand; a network of RGB is rounded to 8 bits first, as the field does."""
    rng = np.random.default_rng(0)
    hr = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
    lr = imresize(hr, 0.5)
    write_image(tmp_path / "Set/HR/a.png", hr)
    write_image(tmp_path / "Set/LR/a.png", lr)
    network = small("ESPCN")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
        y = torch.from_numpy(rgb_to_y(lr) / 255).float()[None, None]
        output = network(y)[0, 0].double().clamp(0, 1).numpy() * 255
    save_weights(tmp_path / "espcn.pth", params=network.state_dict())
    plan = plan_of_network(
        load_network(tmp_path / "espcn.pth"), None, tmp_path / "out", pairs=[f"Set={tmp_path}/Set/HR,{tmp_path}/Set/LR"]
    )
    from safmn.data import build_dataset

    dataset = build_dataset(plan.sets["Set"], phase="test", scale=2)
    result = evaluate(plan.network, dataset, name="Set", metrics=plan.metrics, device="cpu")
    error = ((output - rgb_to_y(hr))[2:-2, 2:-2] ** 2).mean()
    assert result.mean["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)


def test_the_score_of_y_is_that_of_the_clamped_y() -> None:
    """As in the authors' code. A pixel beyond white or black changes in R, G and B alike."""
    image = torch.tensor([[1.5, 1.5, 0.2], [-0.4, -0.2, -0.4], [0.3, 0.5, 0.7]]).t()[None, :, None]  # (1, 3, 1, 3)
    clamped = with_luma_in_range(image)
    torch.testing.assert_close(luma(clamped), luma(image).clamp(0, 1))
    assert torch.equal(clamped[..., 2], image[..., 2])
    change = clamped - image
    torch.testing.assert_close(change, change.mean(1, keepdim=True).expand_as(change), rtol=0, atol=1e-6)
    assert with_luma_in_range(torch.tensor([[[[1.2, -0.1, 0.5]]]])).tolist() == [[[[1.0, 0.0, 0.5]]]]


def test_complexity_counts_the_network_in_its_own_form() -> None:
    """By hand: ESPCN's three convolutions on the small Y image, SRCNN's on the enlarged one."""
    pixels = 640 * 360
    espcn = complexity(find(ARCH_REGISTRY, "ESPCN")(scale_factor=2), (720, 1280))
    assert espcn.multiply_adds == pixels * (25 * 64 + 9 * 64 * 32 + 9 * 32 * 4)
    srcnn = complexity(find(ARCH_REGISTRY, "SRCNN")(upscale=4), (720, 1280))
    assert srcnn.multiply_adds == 720 * 1280 * (81 * 64 + 25 * 64 * 32 + 25 * 32)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("VDSR", "RFDN", "SPAN") else (pytest.mark.slow,)) for n in NAMES]
)
def test_onnx_files_take_rgb_and_give_the_networks_result(name: str, tmp_path: Path) -> None:
    """The export itself compares the file's results with the network's, in its form, at several sizes."""
    pytest.importorskip("onnxruntime")
    network = small(name)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.5)
    exported = export_network(in_form(network), tmp_path / "network.onnx")
    assert exported.error is not None
    assert exported.sizes


ROWS = published(WEIGHTS / "README.md") if (WEIGHTS / "README.md").is_file() else []
_FAST_WEIGHTS = {"SPAN_ch26_NTIRE24_x4.pth", "PlainUSR_Rep_x4.pth"}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=f"{row['file']}-{row['scale']}", marks=() if row["file"] in _FAST_WEIGHTS else (pytest.mark.slow,)
        )
        for row in ROWS
    ],
)
def test_published_weights_measure_what_the_reference_code_measures(row: dict[str, Any], benchmark_dir: Path) -> None:
    """PSNR and SSIM on Set5, full frame, to the last printed digit (BSRN's is recomputed in float32 here)."""
    network = load_network(WEIGHTS / row["file"], scale=row["scale"])
    plan = plan_of_network(network, None, Path("unused"), benchmark=str(benchmark_dir))
    from safmn.data import build_dataset

    dataset = build_dataset(plan.sets["Set5"], phase="test", scale=row["scale"])
    result = evaluate(plan.network, dataset, name="Set5", metrics=plan.metrics, device="cpu", progress=False)
    assert result.mean["psnr"] == pytest.approx(row["Set5"][0], abs=1.01e-3)
    assert result.mean["ssim"] == pytest.approx(row["Set5"][1], abs=1.01e-4)


def test_a_form_says_itself_in_words() -> None:
    assert str(Form()) == "RGB"
    assert str(Form("Y", enlarged=True)) == "Y, enlarged bicubically first"
    assert str(Form(largest=255.0, smallest=15)) == "RGB, in [0, 255], at least 15x15"
    assert form_of(nn.Identity()) == Form()
    assert in_form(nn.Conv2d(3, 3, 1)).__class__ is nn.Conv2d


def test_luma_is_matlabs() -> None:
    image = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    expected = rgb_to_y(image[0].permute(1, 2, 0).numpy() * 255) / 255
    np.testing.assert_allclose(luma(image)[0, 0].numpy(), expected, atol=1e-12)


def test_training_form_and_its_wrapper_share_their_weights() -> None:
    network = small("ESPCN")
    outer = in_form(network)
    assert isinstance(outer, InForm)
    assert {id(p) for p in outer.parameters()} == {id(p) for p in network.parameters()}
    y = torch.rand(1, 1, 8, 8)
    result: Tensor = outer(y)
    torch.testing.assert_close(result, network(y))
