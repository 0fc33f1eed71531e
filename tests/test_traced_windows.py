"""Networks with window attention as graphs: a trace must not hold the number of images or their size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peer_helpers import small
from torch import Tensor, nn

from safmn import Upscaler
from safmn.archs.peers import in_form
from safmn.errors import OptionError
from safmn.inference.export import ExportError, export_network
from safmn.inference.optimize import for_graph
from safmn.inference.swin_graph import GraphSwinBlock


class Windows(nn.Module):
    """A user's network that mixes the pixels of each window, and counts images or pixels in Python.

    Args:
        counts_images: as SwinIR's and HAT's code does; otherwise it counts the pixels of a row.
    """

    def __init__(self, *, counts_images: bool) -> None:
        super().__init__()
        self.scale, self.window, self.halo, self.counts_images = 2, 4, None, counts_images
        self.first, self.mix = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, 3, 2 * h, 2 * w)."""
        x = self.first(x)
        batch, dim, height, width = x.shape
        if not self.counts_images:
            width = int(width)
        windows = x.permute(0, 2, 3, 1).reshape(batch, height // 4, 4, width // 4, 4, dim).permute(0, 1, 3, 2, 4, 5)
        mixed = windows + self.mix(windows.reshape(-1, 16, dim)).softmax(1).reshape(windows.shape)
        if self.counts_images:
            batch = int(mixed.numel() / (height * width * dim))
        image = mixed.reshape(batch, height // 4, width // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5)
        image = image.reshape(batch, height, width, -1)[..., :dim]
        return nn.functional.pixel_shuffle(image.permute(0, 3, 1, 2), 2)


def windows(*, counts_images: bool) -> nn.Module:
    """Return the network in evaluation mode."""
    torch.manual_seed(0)
    return Windows(counts_images=counts_images).eval()


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 3, 9, 14), (2, 3, 64, 64)])
def test_swinir_is_the_same_network_as_a_graph(shape: tuple[int, ...]) -> None:
    """(64, 64) is the size of BasicSR's stored masks."""
    pytest.importorskip("basicsr")
    network = in_form(small("SwinIR", img_size=64))
    graph = for_graph(network)
    assert sum(isinstance(module, GraphSwinBlock) for module in graph.modules()) == 2
    image = torch.rand(shape)
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(graph(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_swinirs_files_take_several_images_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("basicsr")
    network = in_form(small("SwinIR"))
    export_network(network, tmp_path / "network.pt")
    script = torch.jit.load(str(tmp_path / "network.pt"))
    for shape in ((3, 3, 9, 14), (2, 3, 1, 5)):
        image = torch.rand(shape)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(script(image), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_back_ends_do_not_mix_the_images_of_a_users_network(backend: str) -> None:
    pytest.importorskip(backend)
    pytest.importorskip("onnx")
    network = windows(counts_images=True)
    images = torch.rand(3, 3, 9, 14)
    eager = Upscaler(network, device="cpu", backend="eager", guard=False)(images)
    upscale = Upscaler(network, device="cpu", backend=backend, guard=False)
    torch.testing.assert_close(upscale(images), eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_back_ends_refuse_a_network_whose_graph_is_for_one_size(backend: str) -> None:
    pytest.importorskip(backend)
    pytest.importorskip("onnx")
    network = windows(counts_images=False)
    with pytest.raises(OptionError, match=rf"back end '{backend}' cannot run Windows: its graph .* 20x24 pixels"):
        Upscaler(network, device="cpu", backend=backend)


def test_a_file_that_mixes_images_is_refused_with_advice(tmp_path: Path) -> None:
    network = windows(counts_images=True)
    with pytest.raises(ExportError, match=r"wrong for 2 images at once.* right for one image at a time.*--size"):
        export_network(network, tmp_path / "network.pt")
    assert not (tmp_path / "network.pt").exists()
