"""Single networks of others: what the golden outputs do not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peer_helpers import WEIGHTS, small
from torch import Tensor, nn
from torch.nn import functional

from safmn.archs.complexity import complexity
from safmn.archs.peers import folded, in_form
from safmn.archs.peers.ecbsr import ECBSR_Y
from safmn.archs.peers.lapar import filters
from safmn.archs.peers.san import SecondOrderAttention, covariance, square_root
from safmn.archs.peers.smsr import MaskedConvs
from safmn.errors import DataError, OptionError
from safmn.registry import ARCH_REGISTRY, build


def test_lapars_filters_are_the_published_ones() -> None:
    file = WEIGHTS / "LAPAR_kernel_72_k5.npz"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    np.testing.assert_allclose(np.array(filters()), np.load(file)["kernel"].reshape(72, 5, 5), rtol=0, atol=1e-13)


def test_lapars_filters_keep_flat_areas() -> None:
    np.testing.assert_allclose(np.array(filters()).sum((1, 2)), np.ones(72), rtol=1e-12)


@pytest.mark.parametrize("with_idt", [False, True])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("act_type", ["prelu", "relu"])
def test_folding_ecbsr_is_exact_at_the_border_too(with_idt: bool, colors: int, act_type: Any) -> None:
    torch.manual_seed(0)
    network = ECBSR_Y(2, 6, with_idt=with_idt, act_type=act_type, scale=2, colors=colors).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        image = torch.rand(1, colors, 5, 7, dtype=torch.float64)
        plain = network.folded().double()
        expected = network(image)
        torch.testing.assert_close(plain(image), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _published_masking(module: MaskedConvs, x: Tensor, needed: Tensor) -> Tensor:
    """SMSR's masks by the formulas of the paper's section 3.2: each layer's sum over all pairs of kinds of channels."""
    sparse = (module.ch_mask[0, ..., 1] > module.ch_mask[0, ..., 0]).to(x.dtype)  # (dim, layers)
    outputs: list[Tensor] = []
    for layer, conv in enumerate(module.body):
        outward = sparse[:, layer, None, None]
        if layer == 0:
            y = conv(x) * (1 - outward) + conv(x) * outward * needed
        else:
            inward = sparse[:, layer - 1, None, None]
            dense, kept = conv(outputs[-1] * (1 - inward)), conv(outputs[-1] * inward)
            y = dense * (1 - outward) + (dense * outward + kept * (1 - outward) + kept * outward) * needed
        outputs.append(torch.relu(y))
    result: Tensor = module.collect(torch.cat(outputs, dim=1))
    return result


@pytest.mark.parametrize("kinds", ["mixed", "dense", "sparse"])
def test_smsr_splits_its_convolutions_without_changing_the_result(kinds: str) -> None:
    torch.manual_seed(0)
    module = MaskedConvs(8).double()
    with torch.no_grad():
        if kinds != "mixed":
            module.ch_mask[..., 1] = module.ch_mask[..., 0] + (0.5 if kinds == "sparse" else -0.5)
    module.eval()
    x, needed = torch.randn(2, 8, 6, 10, dtype=torch.float64), (torch.rand(2, 1, 6, 10) > 0.5).double()
    with torch.no_grad():
        torch.testing.assert_close(module(x, needed), _published_masking(module, x, needed), rtol=1e-10, atol=1e-10)
        module.ch_mask.data = -module.ch_mask.data  # changed in evaluation mode, as a moving average does
        torch.testing.assert_close(module(x, needed), _published_masking(module, x, needed), rtol=1e-10, atol=1e-10)


def test_smsr_trains_its_masks() -> None:
    network = small("SMSR").train()
    network(torch.rand(1, 3, 8, 8) * 255).sum().backward()
    module: Any = network.body[0]  # type: ignore[index]
    assert module.body.ch_mask.grad.abs().sum() > 0
    assert module.spa_mask[0].weight.grad.abs().sum() > 0


def test_smsr_names_a_size_that_it_cannot_take() -> None:
    with torch.no_grad(), pytest.raises(DataError, match="even sides only; this one has 7x8 pixels"):
        small("SMSR")(torch.rand(1, 3, 8, 7))


def test_sans_square_root_is_one() -> None:
    """Five Newton-Schulz steps suffice for eigenvalues of a similar size."""
    torch.manual_seed(0)
    matrix = torch.eye(6, dtype=torch.float64) + 0.05 * covariance(torch.randn(1, 6, 20, 20, dtype=torch.float64))
    root = square_root(matrix)
    torch.testing.assert_close(root @ root, matrix, rtol=1e-3, atol=1e-3)


def test_sans_covariance_is_that_of_numpy_and_of_the_middle_of_large_images() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 1100, dtype=torch.float64)
    expected = np.cov(x[0].flatten(1).numpy(), bias=True)
    np.testing.assert_allclose(covariance(x)[0].numpy(), expected, atol=1e-12)
    attention = SecondOrderAttention(3, 1).double()
    changed = x.clone()
    changed[..., :50] += 3
    changed[..., 1050:] -= 2
    with torch.no_grad():
        gate, same = attention(x) / x, attention(changed) / changed
    torch.testing.assert_close(same, gate, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["CARN", "CARN_M"])
def test_only_the_branch_of_the_scale_has_influence(name: str) -> None:
    torch.manual_seed(0)
    network: Any = build(ARCH_REGISTRY, {"type": name, "scale": 3}).eval()
    image = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        before = network(image)
        for scale in (2, 4):
            nn.init.zeros_(getattr(network.upsample, f"up{scale}").body[0].weight)
        torch.testing.assert_close(network(image), before)
        nn.init.zeros_(network.upsample.up3.body[0].weight)
        assert not torch.equal(network(image), before)
    assert before.shape == (1, 3, 24, 27)


def test_lapsrn_begins_as_bilinear_enlargement() -> None:
    network = small("LapSRN", scale=4)
    fresh: Any = build(ARCH_REGISTRY, {"type": "LapSRN", "scale": 4})
    network.convt_I1, network.convt_I2 = fresh.convt_I1, fresh.convt_I2
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        for conv in (network.convt_R1, network.convt_R2):
            nn.init.zeros_(conv.weight)  # type: ignore[union-attr,arg-type]
        twice = functional.interpolate(
            functional.interpolate(image, scale_factor=2, mode="bilinear"), scale_factor=2, mode="bilinear"
        )
        inside = (..., slice(8, 24), slice(8, 24))  # transposed convolutions see zeros behind the border
        torch.testing.assert_close(network(image)[inside], twice[inside])


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (17, 16)])
def test_hit_sir_fills_windows_that_are_larger_than_the_image(size: tuple[int, int]) -> None:
    network = small("HiT_SIR")
    with torch.no_grad():
        result = network(torch.rand(1, 3, *size))
    assert result.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "ESPCN", "num_channels": 2}, "has 1"),
        ({"type": "LAPAR", "n_weight": 14}, "n_weight 72"),
        ({"type": "SMSR", "n_feats": 20}, "multiple of 16"),
        ({"type": "HAN", "scale": 5}, "the scale is 5"),
        ({"type": "SAN", "res_scale": 0.1}, "res_scale"),
        ({"type": "ShuffleMixer", "kernel_size": 4}, "odd"),
        ({"type": "OmniSR", "pe": False}, "must be true"),
        ({"type": "HiT_SIR", "depths": (6, 6)}, "equally long"),
        ({"type": "HiT_SIR", "hier_win_ratios": (0.5, 1.5, 2, 4, 6, 8)}, "multiples"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_network_that_cannot_be_says_why(section: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        build(ARCH_REGISTRY, section)


def test_networks_of_one_channel_take_rgb_if_they_are_built_for_it() -> None:
    network = build(ARCH_REGISTRY, {"type": "ESPCN", "num_channels": 3, "scale_factor": 2}).eval()
    image = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(in_form(network)(image), network(image))


def test_seemore_runs_the_chosen_expert_alone_and_gives_the_same_as_all_of_them() -> None:
    network = small("SeemoRe")
    images = torch.rand(3, 3, 20, 24)
    ran: list[int] = []
    for index, expert in enumerate(network.body[0].local_block.block.moe_layer.experts):
        expert.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        together = network(images)  # a batch: all experts
        assert ran == [0, 1, 2]
        for image, expected in zip(images, together, strict=True):
            ran.clear()
            torch.testing.assert_close(network(image[None])[0], expected, rtol=1e-4, atol=1e-5)
            assert len(ran) == 1


def test_basicsrs_ecbsr_is_folded_and_counted_as_it_runs() -> None:
    """BasicSR's own inference folds in each call; ours folds once, with blocks that add their input as well."""
    for with_idt in (False, True):
        network = small("ECBSR", with_idt=with_idt)
        plain = folded(network)
        assert type(plain).__name__ == "ECBSR_PLAIN"
        image = torch.rand(1, 3, 9, 12)
        with torch.no_grad():
            torch.testing.assert_close(plain(image), network(image), rtol=1e-4, atol=1e-4)
        weights = 9 * (3 * 8 + 8 * 8 + 8 * 12)
        assert complexity(network, (720, 1280)).multiply_adds == 640 * 360 * weights
