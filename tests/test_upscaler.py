"""What the upscaler makes in pieces equals what the network makes of the whole frame; the command keeps what it did."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from safmn import Upscaler
from safmn.inference.cli import main
from safmn.registry import ARCH_REGISTRY, build


def network(**arguments: int) -> torch.nn.Module:
    torch.manual_seed(0)
    section = {"type": "SAFMN", "dim": 16, "n_blocks": 2, "upscaling_factor": 2, **arguments}
    return build(ARCH_REGISTRY, section).eval().requires_grad_(False)


def photo(height: int, width: int) -> torch.Tensor:
    image = np.tile(data.astronaut(), (2, 3, 1))[:height, :width]
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255  # (1, 3, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 72), (200, 328), (136, 1032)])
@pytest.mark.parametrize("tile", [32, 64])
def test_pieces_equal_the_whole_frame(height: int, width: int, tile: int) -> None:
    net = network()
    image = photo(height, width)
    with torch.no_grad():
        whole = net(image).clamp(0, 1)
    pieces = Upscaler(net, tile=tile, backend="eager")(image)
    assert float((pieces.clamp(0, 1) - whole).abs().max()) <= 1e-5


def test_other_sizes_are_padded_and_cropped_the_same_way_with_and_without_tiles() -> None:
    net = network()
    image = photo(101, 203)
    whole, pieces = (Upscaler(net, tile=tile, backend="eager")(image) for tile in (0, 32))
    assert whole.shape == (1, 3, 202, 406)
    assert float((whole - pieces).abs().max()) <= 1e-5


def test_array_in_array_out() -> None:
    result = Upscaler(network(), backend="eager")(data.chelsea()[:40, :64])
    assert isinstance(result, np.ndarray)
    assert (result.dtype, result.shape) == (np.uint8, (80, 128, 3))


def test_command_does_what_is_good_and_names_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.png"), data.chelsea()[:40, :48, ::-1])
    cv2.imwrite(str(folder / "grey.png"), data.camera()[:32, :40])
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:400])
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--weights", "safmn-x2", "--backend", "eager"]
    assert main(arguments) == 1
    messages = "".join(capfd.readouterr())
    assert "empty.png" in messages
    assert "cut.png" in messages
    assert "Traceback" not in messages
    assert cv2.imread(str(tmp_path / "out/good.png")).shape == (80, 96, 3)
    assert cv2.imread(str(tmp_path / "out/grey.png"), cv2.IMREAD_UNCHANGED).shape == (64, 80)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "grey.png"]
    before = (tmp_path / "out/good.png").stat().st_mtime_ns
    assert main(arguments) == 1
    assert (tmp_path / "out/good.png").stat().st_mtime_ns == before  # kept
