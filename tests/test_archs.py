"""The networks: published names and outputs, gradients, compilation, complexity, and the halo that tiles need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_safmn import plain_safmn
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.archs import FAMILY, SAFMN, SAFMN_BCIE, SAFMNPP, LightSAFMNPP
from safmn.archs.blocks import ChannelNorm, max_pool
from safmn.archs.complexity import complexity
from safmn.errors import OptionError
from safmn.registry import ARCH_REGISTRY, build, find

SMALL: dict[str, dict[str, Any]] = {network.__name__: network.small for network in FAMILY}
NAMES = [network.__name__ for network in FAMILY]


def small(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a small network with weights so large that no signal vanishes between layers."""
    torch.manual_seed(0)
    network = build(ARCH_REGISTRY, {"type": name, **SMALL[name]}).to(dtype).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=1 / max(1, parameter[0].numel()) ** 0.5)
    return network


def golden_state(entry: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a golden case, drawn as the data's description says."""
    state = {}
    for k, (name, shape) in enumerate(entry["state_dict"].items()):
        value = np.random.RandomState(1000 + k).randn(*shape)
        if len(shape) > 1:
            value = value * entry["gain"] / np.sqrt(np.prod(shape[1:]))
        else:
            value = value * 0.1 + name.endswith(("norm1.weight", "norm2.weight"))
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


@pytest.mark.parametrize("name", NAMES)
def test_outputs_weight_names_and_counts_equal_the_golden_data(name: str, golden_dir: Path) -> None:
    entries = [entry for entry in json.loads((golden_dir / "manifest.json").read_text()) if entry["arch"] == name]
    assert entries, f"no golden case for {name}"
    for entry in entries:
        network = find(ARCH_REGISTRY, name)(**entry["kwargs"]).eval()
        named = [(key, list(value.shape)) for key, value in network.state_dict().items()]
        assert named == list(map(tuple, entry["state_dict"].items()))
        assert sum(parameter.numel() for parameter in network.parameters()) == entry["params"]
        network.load_state_dict(golden_state(entry))
        assert entry["cases"]
        for case in entry["cases"]:
            random = np.random.RandomState(case["input"]["randomstate_seed"])
            image = torch.from_numpy(random.rand(*case["input"]["shape"]).astype(np.float32))
            expected = np.load(golden_dir / case["file"])["output"]
            with torch.inference_mode():
                error = np.abs(network(image).numpy() - expected).max() / expected.std()
            assert error <= 1e-4, case["file"]


@pytest.mark.parametrize(("scale", "params"), [(2, 227_820), (3, 232_695), (4, 239_520)])
def test_published_parameter_counts(scale: int, params: int) -> None:
    network = SAFMN(dim=36, n_blocks=8, ffn_scale=2.0, upscaling_factor=scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == params


@pytest.mark.parametrize("name", NAMES)
def test_basicsr_builds_the_network(name: str) -> None:
    assert isinstance(build_network({"type": name, **SMALL[name]}), find(ARCH_REGISTRY, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 48), (26, 34), (6, 2)])
def test_any_size_works_and_images_of_a_batch_are_independent(name: str, size: tuple[int, int]) -> None:
    """This includes sizes that pooling windows do not divide, and sizes smaller than a window."""
    network = small(name)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        both = network(images)
        assert both.shape == (2, 3, size[0] * network.scale, size[1] * network.scale)
        assert both.isfinite().all()
        torch.testing.assert_close(network(images[1:]), both[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (19, 13)])
def test_safmn_equals_a_plain_implementation_with_its_gradients(size: tuple[int, int]) -> None:
    network = small("SAFMN", torch.float64)
    image = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, size[0] * 3, size[1] * 3, dtype=torch.float64)
    weights = dict(network.named_parameters())

    ours = network(image)
    plain = plain_safmn(image, weights, n_blocks=2, scale=3)
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)

    wanted = [image, *weights.values()]
    our_gradients = torch.autograd.grad(ours, wanted, direction)
    plain_gradients = torch.autograd.grad(plain, wanted, direction)
    for name, a, b in zip(["image", *weights], our_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()), msg=f"gradient of {name}")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8, 16]), st.booleans())
def test_max_pool_equals_adaptive_pooling_exactly(height: int, width: int, factor: int, multiples: bool) -> None:
    if multiples:
        height, width = height * factor, width * factor
    x = torch.from_numpy(np.random.RandomState(height * 64 + width).randn(1, 3, height, width))
    expected = F.adaptive_max_pool2d(x, (max(height // factor, 1), max(width // factor, 1)))
    assert torch.equal(max_pool(x, factor), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_norm_equals_its_formula_in_both_layouts(layout: torch.memory_format) -> None:
    norm = ChannelNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_is_accurate_and_has_finite_gradients(name: str) -> None:
    network = small(name)
    image = torch.rand(1, 3, 32, 48)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(image)
    rough.float().sum().backward()
    assert (rough.float() - exact).abs().mean() < 0.02 * exact.std()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_compiles_once_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    network = small(name)
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    for seed in range(3):  # other values must not compile again
        image = torch.from_numpy(np.random.RandomState(seed).rand(1, 3, 32, 48).astype(np.float32))
        torch.testing.assert_close(compiled(image), network(image))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_equals_the_network(name: str) -> None:
    network = small(name)
    traced = torch.jit.trace(network, torch.rand(1, 3, 32, 48))
    image = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(traced(image), network(image))


def reach(network: Any) -> int:
    """Return how far a pixel affects the output along a row, in LR pixels: the maximum over the positions in a window.

    A NaN spreads to every value that depends on it, independent of the weights. The network must have double precision:
    algorithms for single precision (Winograd) may read more pixels than the convolution needs.
    """
    furthest = 0
    middle = (network.halo // network.window + 2) * network.window
    width = 2 * middle + network.window
    for place in range(middle, middle + network.window):
        image = torch.rand(1, 3, network.window, width, dtype=torch.float64)
        image[..., place] = torch.nan
        with torch.inference_mode():
            affected = network(image).isnan().any(dim=1).any(dim=1)[0]
        columns = affected.nonzero()[:, 0] // network.scale
        assert columns[0] > 0, "the strip is too narrow"
        assert columns[-1] < width - 1, "the strip is too narrow"
        furthest = max(furthest, place - int(columns[0]), int(columns[-1]) - place)
    return furthest


@pytest.mark.parametrize(
    "network",
    [
        SAFMN(dim=4, n_blocks=1),
        SAFMN(dim=4, n_blocks=8, ffn_scale=1.0, upscaling_factor=2),
        SAFMN_BCIE(dim=4, n_blocks=1, num_layers=1),
        SAFMN_BCIE(dim=4, n_blocks=2, num_layers=3, ffn_scale=1.0),
        SAFMNPP(dim=6, n_blocks=1, upscaling_factor=3),
        SAFMNPP(dim=6, n_blocks=6, upscaling_factor=2),
        LightSAFMNPP(dim=4, n_blocks=2),
    ],
    ids=lambda network: f"{type(network).__name__}-{network.halo}",
)
def test_halo_equals_the_reach_of_a_pixel(network: Any) -> None:
    assert reach(network.double().eval()) == network.halo


@pytest.mark.parametrize(("kwargs", "halo"), [({"dim": 36, "n_blocks": 8}, 130), ({"dim": 128, "n_blocks": 16}, 258)])
def test_halo_of_the_published_sizes(kwargs: dict[str, Any], halo: int) -> None:
    with torch.device("meta"):
        assert SAFMN(**kwargs).halo == halo


@pytest.mark.parametrize("name", ["SAFMN_NTIRE23", "SAFMNv3"])
def test_networks_that_depend_on_the_whole_frame_have_no_halo(name: str) -> None:
    network = small(name, torch.float64)
    assert network.halo is None
    image = torch.rand(1, 3, 16, 160, dtype=torch.float64)
    changed = image.clone()
    changed[..., 0] += 1
    assert not torch.equal(network(image)[..., -1], network(changed)[..., -1])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("SAFMN_NTIRE23", "SAFMNv3")])
def test_a_tile_with_its_halo_equals_the_frame(name: str) -> None:
    network = small(name, torch.float64)
    margin = -(-network.halo // network.window) * network.window
    core = 2 * network.window
    image = torch.rand(1, 3, 2 * network.window, 2 * margin + core + 3 * network.window, dtype=torch.float64)
    start, s = network.window, network.scale  # the tile starts at a multiple of the window, not at the edge
    tile = image[..., start : start + 2 * margin + core]
    with torch.inference_mode():
        frame, part = network(image), network(tile)
    expected = frame[..., (start + margin) * s : (start + margin + core) * s]
    torch.testing.assert_close(part[..., margin * s : (margin + core) * s], expected, rtol=0, atol=1e-12)


def test_dim_must_be_a_multiple_of_four() -> None:
    with pytest.raises(OptionError, match="dim is 38"):
        SAFMN(dim=38)


def test_complexity_equals_the_published_one() -> None:
    params, multiply_adds, activations = complexity(SAFMN(36, 8, 2.0, 4), output_size=(720, 1280))
    assert params == 239_520
    assert multiply_adds / 1e9 == pytest.approx(13.56, abs=0.01)
    assert activations / 1e6 == pytest.approx(76.70, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_complexity_equals_fvcore(name: str) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    network = small(name)
    counted = complexity(network, output_size=(64 * network.scale, 80 * network.scale))
    image = torch.rand(1, 3, 64, 80)
    flops = fvcore.FlopCountAnalysis(network, image).unsupported_ops_warnings(False)
    acts = fvcore.ActivationCountAnalysis(network, image).unsupported_ops_warnings(False)
    assert counted.params == fvcore.parameter_count(network)[""]
    assert counted.multiply_adds == flops.total() - flops.by_operator()["layer_norm"]
    assert counted.activations == acts.total()
