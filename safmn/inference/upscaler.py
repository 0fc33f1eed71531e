"""Arrays and tensors of any size through a network: the engine of ``safmn upscale``, and the same from Python."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from safmn.archs import FAMILY
from safmn.errors import DataError, OptionError, WeightsError
from safmn.inference import tiling, transparency
from safmn.inference.backends import Backend, make_backend
from safmn.inference.guard import Finding, Guard, Watch
from safmn.inference.stages import Chain, Plain, Stage, map_modules, stages_of
from safmn.inference.streaming import STREAMING_BASE, bytes_per_column
from safmn.inference.tiling import Cut, Frame, Progress
from safmn.runtime.execution import named_device
from safmn.runtime.memory import PeakMemory, free_bytes, is_out_of_memory
from safmn.weights import load_network

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]
Image = TypeVar("Image", Array, Tensor)

DEFAULT_WEIGHTS = "safmn-x2"
_DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
# On the CPU: what the computation may take beside torch (0.4 GiB) and the images, so that an 8K output needs < 2 GiB.
_CPU_BUDGET = 960 * 2**20
# Back ends whose instances do not each keep memory of their own: a network has dozens of stages.
_SHARING = ("native", "eager", "compile")
_PROBE = 64  # pixels along each side
_SAMPLE = 128  # pixels along each side, at most
_ENSEMBLE_BYTES = 12  # for each colour value of the result: the sum, one of the eight results, and that one flipped


class Upscaler:
    """Upscales images with any network of :func:`safmn.load_network`.

    Args:
        weights: a weight file, the name of weights that come with the package, or a network that is already built
            (with ``scale``; ``window`` and ``halo`` where it is not of the SAFMN family), which is put into evaluation
            mode. Its weights may change between calls, but for what is written to their ``data`` behind torch's back.
        tile: "auto" cuts the image so that it fits into the memory that is free; a number gives the width of the pieces
            in LR pixels; 0 never cuts. Pieces equal the whole, but for rounding (1e-5), wherever the network allows it;
            where it sees the whole frame they fade into each other instead, and a warning says so.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32", "bf16" or "fp16".
        backend: what runs the network (:func:`safmn.inference.backends.available_backends`); "auto" takes the fastest
            one that is installed and gives the same result.
        self_ensemble: average over the eight flips and rotations: eight times the work, about 0.1 dB better.
        full_frame_semantics: run the network as published on sizes that are not multiples of its window, where its
            pooling adapts to the size of the frame; never cuts. Otherwise such an image is padded by mirroring.
        guard: put bicubic where the output is garbage (:mod:`safmn.inference.guard`), and say so.

    Attributes:
        network: the network.
        scale: output pixels per input pixel, along each side.
        name: of the weights, for messages.

    Raises:
        WeightsError: the weights cannot be loaded.
        OptionError: an argument is not one of those above.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | nn.Module | None = None,
        *,
        tile: int | Literal["auto"] = "auto",
        device: str | torch.device = "auto",
        precision: str = "fp32",
        backend: str = "auto",
        self_ensemble: bool = False,
        full_frame_semantics: bool = False,
        guard: bool = True,
    ) -> None:
        if full_frame_semantics and backend in ("auto", "eager"):
            backend = "eager"
        elif full_frame_semantics:
            raise OptionError(f"backend={backend!r} knows no other pooling: full_frame_semantics needs 'eager'")
        if tile != "auto" and (not isinstance(tile, (int, np.integer)) or isinstance(tile, bool) or tile < 0):
            raise OptionError(f"tile={tile!r}: choose 'auto', a width in pixels, or 0 for no tiles")
        self.device = named_device(device)
        network: Any = _load(weights, self.device)
        self.network = network
        self.scale: int = network.scale
        self.tile: int | Literal["auto"] = 0 if full_frame_semantics else tile if tile == "auto" else int(tile)
        self.precision = precision
        self.backend = backend
        self.self_ensemble = self_ensemble
        self.full_frame_semantics = full_frame_semantics
        self.guard = guard
        self.name = type(network).__name__ if isinstance(weights, nn.Module) else str(weights or DEFAULT_WEIGHTS)
        self._chain = stages_of(network) or _as_one_stage(network)
        self._window: int = getattr(network, "window", 1)
        self._warned = False
        self._sample: Tensor | None = None  # the middle of the first image, on which the back end is chosen
        self._versions = _versions(network)
        _ = self._whole  # raises here what is wrong with the arguments

    def __call__(
        self,
        image: Image,
        *,
        progress: Progress | None = None,
        report: Callable[[Finding], None] | None = None,
    ) -> Image:
        """Upscale one image or a batch.

        Args:
            image: a numpy array (H, W), (H, W, C) or (B, H, W, C), or a tensor (H, W), (C, H, W) or (B, C, H, W).
                C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha); uint8, uint16, or floating point in [0, 1].
            progress: called with the part of the work (0 to 1) that was finished since the last call.
            report: called where the guard found something, once at most; without it a warning is logged.

        Returns:
            The same kind, type, device and layout, ``scale`` times as high and wide; floating point in [0, 1]. Colours
            of invisible pixels (alpha 0) do not show in it, whatever they are.

        Raises:
            DataError: not such an image.
            WeightsError: what the network makes of it is not finite anywhere (NaN).
        """
        source = _as_batch(image)  # (B, C, h, w)
        self._follow_weights()
        batch, channels, height, width = source.shape
        shape = (batch, height * self.scale, width * self.scale, channels)
        beside = _ENSEMBLE_BYTES * min(channels, 3) / channels if self.self_ensemble else 0
        self._check_room(int((source.element_size() + beside) * math.prod(shape)), width, height)
        if isinstance(image, Tensor):
            target = source.new_empty(batch, channels, *shape[1:3])
        else:
            target = torch.empty(shape, dtype=source.dtype).permute(0, 3, 1, 2)
        advance = progress or (lambda part: None)
        planes = _planes(channels)
        watch = Watch(self._guard, source, replaces=self.guard)
        with torch.no_grad():
            for index, plane in enumerate(planes):
                shown = source[:, plane]
                if index == 0 and len(planes) > 1:
                    shown = transparency.filled(shown, source[:, planes[1]])
                self._plane(shown, target[:, plane], index > 0, lambda part: advance(part / len(planes)), watch)
            if len(planes) > 1 and not _is_flat(source[:, planes[1]]):
                transparency.settle(source, target, planes[0], planes[1], tiling.LARGEST.get(source.dtype, 1.0))
        watch.tell(report)
        return cast(Image, _like(image, target))

    def _follow_weights(self) -> None:
        """Back ends keep the weights in forms of their own: make them anew where those of the network have changed."""
        versions = _versions(self.network)
        if versions != self._versions:
            for name in ("_whole", "_stages", "_guard"):
                self.__dict__.pop(name, None)
            self._versions = versions

    def _check_room(self, size: int, width: int, height: int) -> None:
        """Refuse what the system would be killed for: it promises memory that it does not have."""
        free = free_bytes(torch.device("cpu"))
        if size > free:
            raise DataError(
                f"the result of {width}x{height} pixels at x{self.scale} takes {size / 2**30:.1f} GiB of memory; "
                f"{free / 2**30:.1f} GiB are free"
            )

    def _plane(self, source: Tensor, target: Tensor, alpha: bool, progress: Progress, watch: Watch) -> None:
        """The colours or the alpha of a batch: (B, 1 or 3, h, w) into (B, 1 or 3, h * scale, w * scale)."""
        if alpha and _is_flat(source):  # an opaque image
            target.fill_(source[0, 0, 0, 0].item())
            progress(1.0)
            return
        if self.self_ensemble:
            self._ensemble(source, target, progress, watch)
        else:
            self._frames(source, target, progress, watch.broken)
        if target.is_floating_point():
            target.clamp_(0, 1)
        watch.check(source, target)

    def _ensemble(self, source: Tensor, target: Tensor, progress: Progress, watch: Watch) -> None:
        """The mean over the eight flips and rotations (Timofte et al., CVPR 2016)."""
        image = source.to(torch.float32) / tiling.LARGEST.get(source.dtype, 1.0)
        total = torch.zeros(target.shape, device=source.device)
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(image, turns, (2, 3))
                turned = turned.flip(3) if flip else turned
                out = turned.new_empty(*turned.shape[:2], *(side * self.scale for side in turned.shape[2:]))
                self._frames(turned, out, lambda part: progress(part / 8))
                total += torch.rot90(out.flip(3) if flip else out, -turns, (2, 3))
        Frame(source, target, self.scale, 1, self.device, watch.broken).write(0, 0, total.div_(8))

    def _frames(self, source: Tensor, target: Tensor, progress: Progress, broken: Tensor | None = None) -> None:
        """A batch at once if it fits into memory uncut, otherwise image by image."""
        frame = self._frame(source, target, broken)
        if self._sample is None:
            self._sample = frame.read(*_middle(frame.height, self._window), *_middle(frame.width, self._window))[:1]
        cut = self.cut(frame)
        if frame.batch == 1 or cut.covers(frame):
            self._run(frame, cut, progress)
            return
        for index in range(frame.batch):
            one = slice(index, index + 1)
            single = self._frame(source[one], target[one], None if broken is None else broken[one])
            self._run(single, self.cut(single), lambda part: progress(part / frame.batch))

    def _frame(self, source: Tensor, target: Tensor, broken: Tensor | None) -> Frame:
        window = self._published_window if self.full_frame_semantics else self._window
        return Frame(source, target, self.scale, window, self.device, broken)

    def _run(self, frame: Frame, cut: Cut, progress: Progress) -> None:
        """Piece by piece; where memory runs out, on with pieces of half the width."""
        left = 0
        while left < frame.width:
            try:
                left = self._piece(frame, cut, left, progress)
            except Exception as error:
                smaller = None if self.tile == 0 else cut.halved(self._window, blended=self._chain is None)
                if not is_out_of_memory(error):
                    raise
                if smaller is None:
                    raise DataError(
                        f"not enough memory for an image of {frame.source.shape[3]}x{frame.source.shape[2]} pixels"
                        + (" in one piece; use tile='auto'." if self.tile == 0 else ", even in small pieces.")
                    ) from error
                logger.warning("Out of memory with tiles %d wide; going on with %d.", cut.width, smaller.width)
                cut = smaller
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _piece(self, frame: Frame, cut: Cut, left: int, progress: Progress) -> int:
        """Do the piece that begins at column ``left``; returns the column where it ends."""
        if cut.covers(frame):
            if frame.height * frame.width >= _SAMPLE**2:  # a smaller one is its own sample
                self._choose()
            tiling.run_whole(frame, self._whole, progress)
            return frame.width
        if self._chain is None:
            self._warn_blended()
            tiling.run_blended(frame, self._whole, cut, window=self._window, progress=progress)
            return frame.width
        right = min(left + cut.width, frame.width)
        tiling.run_strip(
            frame,
            self._stages,
            left,
            right,
            halo=self.network.halo,
            window=self._window,
            rows=cut.rows,
            progress=progress,
        )
        return right

    def _warn_blended(self) -> None:
        if not self._warned:
            logger.warning(
                "%s may depend on the whole frame, so tiles cannot equal it: they overlap by %d pixels and fade into "
                "each other. tile=0 computes the frame in one piece.",
                type(self.network).__name__,
                tiling.OVERLAP,
            )
        self._warned = True

    # What to cut

    def cut(self, frame: Frame) -> Cut:
        """How a frame will be cut up."""
        if self.tile == 0:
            return Cut(frame.width, frame.height)
        if self.tile != "auto":
            side = -(-self.tile // self._window) * self._window
            cut = Cut(side, side)
            return cut if self._chain is None or cut.covers(frame) else Cut(side, min(side, tiling.BAND))
        budget = self._budget()
        if frame.height * frame.width * frame.batch * self._bytes_per_pixel <= budget:
            return Cut(frame.width, frame.height)
        if self._chain is None:
            return tiling.choose_tile(budget, self._bytes_per_pixel * frame.batch, self._window)
        budget -= STREAMING_BASE
        needed = functools.partial(bytes_per_column, self._chain)
        return tiling.choose_strip(frame, budget, self.network.halo, self._window, needed)

    def _budget(self) -> float:
        free = free_bytes(self.device)
        return free * 0.8 if self.device.type == "cuda" else min(free * 0.5, _CPU_BUDGET)

    @functools.cached_property
    def _bytes_per_pixel(self) -> float:
        """Peak memory of an uncut frame for each of its pixels, measured on a small one."""
        side = -(-_PROBE // self._window) * self._window
        with PeakMemory() as memory, torch.no_grad():
            tiling.run_whole(self._blank(side, side), self.network, lambda part: None)
        return memory.peak / side**2

    def _blank(self, height: int, width: int) -> Frame:
        source, target = (torch.zeros(1, 3, height * k, width * k, dtype=torch.uint8) for k in (1, self.scale))
        return Frame(source, target, self.scale, self._window, self.device)

    # What to run

    @functools.cached_property
    def _whole(self) -> Backend:
        """The back end that runs the whole network; "auto" decides when it is first called."""
        return self._backend(self.backend, self.network)

    def _choose(self) -> None:
        """Let "auto" decide on the sample: on a whole photograph, eager alone would take longer than all the rest."""
        if self._whole.name == "auto":
            assert self._sample is not None
            self._whole(self._sample)

    def _backend(self, name: str, network: nn.Module) -> Backend:
        return make_backend(name, network, device=self.device, precision=self.precision)

    @functools.cached_property
    def _stages(self) -> Chain:
        """The network's stages, each run by the back end that suits the whole network."""
        self._choose()
        name = self._whole.name
        if self.backend == "auto" and name not in _SHARING:
            logger.info("Cut frames are run eagerly: back end %s would hold memory for each of many stages.", name)
            name = "eager"
        assert self._chain is not None
        return map_modules(self._chain, lambda stage: self._backend(name, stage))

    @functools.cached_property
    def _guard(self) -> Guard:
        precision = "" if self.precision == "fp32" else f" in {self.precision}"
        return Guard(
            self.network, scale=self.scale, window=self._window, device=self.device, name=self.name + precision
        )

    @functools.cached_property
    def _published_window(self) -> int:
        """What an image's sides must be multiples of at all: the pixel unshuffles of the network."""
        return math.prod(part.down for part in self._chain or () if isinstance(part, Stage))


def _load(weights: str | os.PathLike[str] | nn.Module | None, device: torch.device) -> nn.Module:
    """The network in evaluation mode on the device."""
    if isinstance(weights, nn.Module):
        if not isinstance(getattr(weights, "scale", None), int):
            raise OptionError(f"{type(weights).__name__} has no attribute 'scale', the output's size over the input's")
        return weights.to(device).eval()
    if not (weights is None or isinstance(weights, (str, os.PathLike))):
        raise OptionError(f"weights={weights!r}: give a file, a name of weights or a network")
    try:
        return load_network(DEFAULT_WEIGHTS if weights is None else weights, device=device)
    except WeightsError as error:
        if weights is not None:
            raise
        raise WeightsError(
            f"the default weights {DEFAULT_WEIGHTS!r} are not installed; give a file with --weights ({error})"
        ) from error


def _middle(side: int, window: int) -> tuple[int, int]:
    """Where the sample begins and ends along a side: a multiple of the window, where the side is one."""
    size = min(max(_SAMPLE // window, 1) * window, side)
    start = (side - size) // 2 // window * window
    return start, start + size


def _versions(network: nn.Module) -> list[tuple[int, int]]:
    """Where each of the weights is and how often it was written to; those made in inference mode do not count.

    Writing to a weight's ``data`` is not counted by torch.
    """
    weights = itertools.chain(network.parameters(), network.buffers())
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]


def _as_one_stage(network: nn.Module) -> Chain | None:
    """A network of somebody's that states how far it sees, as a chain; None where it does not, and sees the frame."""
    halo, window = getattr(network, "halo", None), getattr(network, "window", 1)
    if not isinstance(halo, int) or isinstance(network, FAMILY):  # a subclass of ours may see further than it says
        return None
    return (Stage(Plain(network, 3, window), 3, -(-halo // window) * window, window, up=int(cast(int, network.scale))),)


def _planes(channels: int) -> list[slice]:
    """Colours and, where there is one, alpha."""
    colours = 1 if channels <= 2 else 3
    return [slice(0, colours)] + ([slice(colours, channels)] if channels in (2, 4) else [])


def _is_flat(plane: Tensor) -> bool:
    values = plane.to(torch.float32)
    return bool((values == values[0, 0, 0, 0]).all())


def _as_batch(image: object) -> Tensor:
    """Any accepted image as (B, C, h, w), sharing its memory where possible."""
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "uf" or image.dtype.itemsize > 8:
            raise DataError(f"cannot upscale an array of {image.dtype}: convert it to uint8, uint16 or float in [0, 1]")
        native = np.require(image, dtype=image.dtype.newbyteorder("="), requirements=["C", "W"])
        tensor = torch.from_numpy(native)
        if tensor.ndim in (3, 4):
            tensor = tensor.movedim(-1, -3)
    elif isinstance(image, Tensor):
        if image.layout != torch.strided or image.is_meta:
            raise DataError("cannot upscale a sparse tensor or one without values: give a dense one (to_dense)")
        tensor = image.detach()
    else:
        raise DataError(f"cannot upscale a {type(image).__name__}: give a numpy array or a tensor")
    shape = tuple(tensor.shape)
    if tensor.ndim not in (2, 3, 4) or 0 in shape or (tensor.ndim > 2 and not 1 <= shape[-3] <= 4):
        raise DataError(
            f"cannot upscale an image of shape {tuple(image.shape)}: give (H, W, C) or (B, H, W, C) arrays, "
            "(C, H, W) or (B, C, H, W) tensors, or (H, W), with 1 to 4 channels"
        )
    if tensor.dtype not in _DTYPES:
        raise DataError(f"cannot upscale {tensor.dtype}: convert it to uint8, uint16 or floating point in [0, 1]")
    return tensor.reshape((1,) * (4 - tensor.ndim) + shape)


def _like(image: Array | Tensor, target: Tensor) -> Array | Tensor:
    """(B, C, H, W) in the layout of the image that was given."""
    target = target[(0,) * (4 - image.ndim)]
    if isinstance(image, Tensor):
        return target
    return (target.movedim(-3, -1) if image.ndim > 2 else target).numpy()
