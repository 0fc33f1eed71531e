"""Arrays and tensors of any size through a network: the engine of ``safmn upscale``, and the same from Python."""

from __future__ import annotations

import copy
import functools
import io
import logging
import math
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from safmn.archs import FAMILY
from safmn.archs.stages import Chain, Plain, Stage, stages_of
from safmn.errors import DataError, OptionError, WeightsError
from safmn.inference import tiling, transparency
from safmn.inference.engine import Engine
from safmn.inference.guard import Finding, Watch
from safmn.inference.optimize import replica
from safmn.inference.streaming import STREAMING_BASE, bytes_per_column
from safmn.inference.tiling import Cut, Frame, Progress
from safmn.runtime.execution import named_device
from safmn.runtime.threads import Lock, Once, in_usable_thread
from safmn.system.memory import PeakMemory, free_bytes, is_out_of_memory
from safmn.value_types import Array
from safmn.weights import load_network

logger = logging.getLogger(__name__)

Image = TypeVar("Image", Array, Tensor)

DEFAULT_WEIGHTS = "safmn-x2"
_DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
# On the CPU: what the computation may take beside torch (0.4 GiB) and the images, so that an 8K output needs < 2 GiB.
_CPU_BUDGET = 960 * 2**20
_PREPARED = ("_chain", "_window", "_lock", "_engine", "_first_warning", "_sample", "_measured")
_PROBE = 64  # pixels along each side
_SAMPLE = 128  # pixels along each side, at most
_ENSEMBLE_BYTES = 12  # for each colour value of the result: the sum, one of the eight results, and that one flipped
_OVERSHOOT = 0.5  # by which floating-point values may leave the range of 0 to 1


class Upscaler:
    """Upscales images with any network of :func:`safmn.load_network`.

    Any number of threads may call it at the same time. It can be pickled, copied and sent to other processes: the copy
    has the network and the arguments, and makes its back end at its first call. A process forked from one that used it
    does so, too (not on CUDA devices, which a forked process cannot use). docs/upscaling.md, "In a server", has more.

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
        network: Any = in_usable_thread(lambda: _load(weights, self.device))
        self.network = network
        self.scale: int = network.scale
        self.tile: int | Literal["auto"] = 0 if full_frame_semantics else tile if tile == "auto" else int(tile)
        self.precision = precision
        self.backend = backend
        self.self_ensemble = self_ensemble
        self.full_frame_semantics = full_frame_semantics
        self.guard = guard
        self.name = type(network).__name__ if isinstance(weights, nn.Module) else str(weights or DEFAULT_WEIGHTS)
        self._prepare()
        in_usable_thread(self._current_engine)  # raises here what is wrong with the arguments

    def _prepare(self) -> None:
        """Set what follows from the network and the arguments."""
        self._chain = stages_of(self.network) or _as_one_stage(self.network)
        self._window: int = getattr(self.network, "window", 1)
        self._lock = Lock()  # of the engine
        self._engine: Engine | None = None
        self._first_warning = Once()
        self._sample: Tensor | None = None  # the middle of the first image, on which the back end is chosen
        self._measured: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, and the network as bytes: tensors that are pickled one by one share memory with the copy."""
        weights = io.BytesIO()
        torch.save(self.network, weights)
        return self._arguments() | {"network": weights.getvalue(), "device": str(self.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build it again, without its back end."""
        self.__dict__.update(state)
        self.device = named_device(state["device"])
        weights = io.BytesIO(state["network"])
        # The pickle around these bytes could hold any code, so that those who load it trust it already.
        load = functools.partial(torch.load, weights, map_location=self.device, weights_only=False)
        self.network = in_usable_thread(load)
        self._prepare()

    def __deepcopy__(self, memo: dict[int, Any]) -> Upscaler:
        """An upscaler with a network of its own. Unlike pickle's, it may be of a class that cannot be imported."""
        return self._with(copy.deepcopy(self.network, memo))

    def __copy__(self) -> Upscaler:
        """An upscaler with the same network."""
        return self._with(self.network)

    def _with(self, network: Any) -> Upscaler:
        other = type(self).__new__(type(self))
        other.__dict__.update(self._arguments(), network=network)
        other._prepare()
        return other

    def _arguments(self) -> dict[str, Any]:
        """All attributes but the network, and what :meth:`_prepare` makes of it."""
        return {name: value for name, value in self.__dict__.items() if name not in _PREPARED and name != "network"}

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
        return in_usable_thread(lambda: self._upscaled(image, progress or (lambda part: None), report))

    @torch.inference_mode(False)  # the caller may be in it, which some back ends are not made for
    @torch.no_grad()
    def _upscaled(self, image: Image, progress: Progress, report: Callable[[Finding], None] | None) -> Image:
        source = _as_batch(image)  # (B, C, h, w)
        engine = self._current_engine()
        batch, channels, height, width = source.shape
        shape = (batch, height * self.scale, width * self.scale, channels)
        beside = _ENSEMBLE_BYTES * min(channels, 3) / channels if self.self_ensemble else 0
        self._check_room(int((source.element_size() + beside) * math.prod(shape)), width, height)
        if isinstance(image, Tensor):
            target = source.new_empty(batch, channels, *shape[1:3])
        else:
            target = torch.empty(shape, dtype=source.dtype).permute(0, 3, 1, 2)
        planes = _planes(channels)
        watch = Watch(engine.guard, source, replaces=self.guard)
        for index, plane in enumerate(planes):
            shown = source[:, plane]
            if index == 0 and len(planes) > 1:
                shown = transparency.filled(shown, source[:, planes[1]])
            self._plane(engine, shown, target[:, plane], index > 0, lambda part: progress(part / len(planes)), watch)
        if len(planes) > 1 and not _is_flat(source[:, planes[1]]):
            transparency.settle(source, target, planes[0], planes[1], tiling.LARGEST.get(source.dtype, 1.0))
        watch.tell(report)
        return cast(Image, _like(image, target))

    def _current_engine(self) -> Engine:
        """What runs the network as it is now. A call keeps its engine, whatever happens to the weights meanwhile.

        Back ends keep the weights in forms of their own, so they are made anew where those of the network have changed.
        """
        engine = self._engine
        if engine is not None and engine.fits(self.network):
            return engine
        with self._lock:
            engine = self._engine  # another thread may have been here
            if engine is None or not engine.fits(self.network):
                engine = self._engine = Engine(
                    self.network,
                    self._chain,
                    backend=self.backend,
                    device=self.device,
                    precision=self.precision,
                    name=self.name,
                )
            return engine

    def _check_room(self, size: int, width: int, height: int) -> None:
        """Refuse what the system would be killed for: it promises memory that it does not have."""
        free = free_bytes(torch.device("cpu"))
        if size > free:
            raise DataError(
                f"the result of {width}x{height} pixels at x{self.scale} takes {size / 2**30:.1f} GiB of memory; "
                f"{free / 2**30:.1f} GiB are free"
            )

    def _plane(
        self, engine: Engine, source: Tensor, target: Tensor, alpha: bool, progress: Progress, watch: Watch
    ) -> None:
        """The colours or the alpha of a batch: (B, 1 or 3, h, w) into (B, 1 or 3, h * scale, w * scale)."""
        if alpha and _is_flat(source):  # an opaque image
            target.fill_(source[0, 0, 0, 0].item())
            progress(1.0)
            return
        if self.self_ensemble:
            self._ensemble(engine, source, target, progress, watch)
        else:
            self._frames(engine, source, target, progress, watch.broken)
        if target.is_floating_point():
            target.clamp_(0, 1)
        watch.check(source, target)

    def _ensemble(self, engine: Engine, source: Tensor, target: Tensor, progress: Progress, watch: Watch) -> None:
        """The mean over the eight flips and rotations (Timofte et al., CVPR 2016)."""
        image = source.to(torch.float32) / tiling.LARGEST.get(source.dtype, 1.0)
        total = torch.zeros(target.shape, device=source.device)
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(image, turns, (2, 3))
                turned = turned.flip(3) if flip else turned
                out = turned.new_empty(*turned.shape[:2], *(side * self.scale for side in turned.shape[2:]))
                self._frames(engine, turned, out, lambda part: progress(part / 8))
                total += torch.rot90(out.flip(3) if flip else out, -turns, (2, 3))
        Frame(source, target, self.scale, 1, self.device, watch.broken).write(0, 0, total.div_(8))

    def _frames(
        self, engine: Engine, source: Tensor, target: Tensor, progress: Progress, broken: Tensor | None = None
    ) -> None:
        """A batch at once if it fits into memory uncut, otherwise image by image."""
        frame = self._frame(source, target, broken)
        if self._sample is None:
            self._sample = frame.read(*_middle(frame.height, self._window), *_middle(frame.width, self._window))[:1]
        cut = self.cut(frame)
        if frame.batch == 1 or cut.covers(frame):
            self._run(engine, frame, cut, progress)
            return
        for index in range(frame.batch):
            one = slice(index, index + 1)
            single = self._frame(source[one], target[one], None if broken is None else broken[one])
            self._run(engine, single, self.cut(single), lambda part: progress(part / frame.batch))

    def _frame(self, source: Tensor, target: Tensor, broken: Tensor | None) -> Frame:
        window = self._published_window if self.full_frame_semantics else self._window
        return Frame(source, target, self.scale, window, self.device, broken)

    def _run(self, engine: Engine, frame: Frame, cut: Cut, progress: Progress) -> None:
        """Piece by piece; where memory runs out, on with pieces of half the width."""
        left = 0
        while left < frame.width:
            try:
                left = self._piece(engine, frame, cut, left, progress)
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

    def _piece(self, engine: Engine, frame: Frame, cut: Cut, left: int, progress: Progress) -> int:
        """Do the piece that begins at column ``left``; returns the column where it ends."""
        assert self._sample is not None
        if cut.covers(frame):
            if frame.height * frame.width >= _SAMPLE**2:  # a smaller one is its own sample
                engine.choose(self._sample)
            tiling.run_whole(frame, engine.whole, progress)
            return frame.width
        if self._chain is None:
            self._warn_blended()
            tiling.run_blended(frame, engine.whole, cut, window=self._window, progress=progress)
            return frame.width
        right = min(left + cut.width, frame.width)
        tiling.run_strip(
            frame,
            engine.stages(self._sample),
            left,
            right,
            halo=self.network.halo,
            window=self._window,
            rows=cut.rows,
            progress=progress,
        )
        return right

    def _warn_blended(self) -> None:
        if self._first_warning():
            logger.warning(
                "%s may depend on the whole frame, so tiles cannot equal it: they overlap by %d pixels and fade into "
                "each other. tile=0 computes the frame in one piece.",
                type(self.network).__name__,
                tiling.OVERLAP,
            )

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
        bytes_per_pixel = self._bytes_per_pixel()
        if frame.height * frame.width * frame.batch * bytes_per_pixel <= budget:
            return Cut(frame.width, frame.height)
        if self._chain is None:
            return tiling.choose_tile(budget, bytes_per_pixel * frame.batch, self._window)
        budget -= STREAMING_BASE
        needed = functools.partial(bytes_per_column, self._chain)
        return tiling.choose_strip(frame, budget, self.network.halo, self._window, needed)

    def _budget(self) -> float:
        free = free_bytes(self.device)
        return free * 0.8 if self.device.type == "cuda" else min(free * 0.5, _CPU_BUDGET)

    def _bytes_per_pixel(self) -> float:
        """Peak memory of an uncut frame for each of its pixels, measured on a small one at the first call."""
        with self._lock:
            if self._measured is None:
                side = -(-_PROBE // self._window) * self._window
                with PeakMemory() as memory, torch.no_grad():
                    tiling.run_whole(self._blank(side, side), replica(self.network), lambda part: None)
                self._measured = memory.peak / side**2
            return self._measured

    def _blank(self, height: int, width: int) -> Frame:
        source, target = (torch.zeros(1, 3, height * k, width * k, dtype=torch.uint8) for k in (1, self.scale))
        return Frame(source, target, self.scale, self._window, self.device)

    @property
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


def _as_one_stage(network: nn.Module) -> Chain | None:
    """A network of somebody's that states how far it sees, as a chain; None where it does not, and sees the frame."""
    halo, window = getattr(network, "halo", None), getattr(network, "window", 1)
    if not isinstance(halo, int) or isinstance(network, tuple(FAMILY)):
        return None  # a subclass of a network of ours may see further than it says
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
    if tensor.is_floating_point():
        _check_values(tensor)
    return tensor.reshape((1,) * (4 - tensor.ndim) + shape)


def _check_values(image: Tensor) -> None:
    """Refuse what would come out white or black: values of 0 to 255, and what is no number.

    Filters and resizing leave the range of 0 to 1 by a little, which is clamped in the result.
    """
    lowest, highest = (value.item() for value in image.aminmax())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise DataError("cannot upscale an image with values that are not numbers (NaN or infinite)")
    if lowest < -_OVERSHOOT or highest > 1 + _OVERSHOOT:
        raise DataError(
            f"cannot upscale floating-point values of {lowest:.4g} to {highest:.4g}: they must be 0 to 1 (divide by "
            "255, or convert to uint8)"
        )


def _like(image: Array | Tensor, target: Tensor) -> Array | Tensor:
    """(B, C, H, W) in the layout of the image that was given."""
    target = target[(0,) * (4 - image.ndim)]
    if isinstance(image, Tensor):
        return target
    return (target.movedim(-3, -1) if image.ndim > 2 else target).numpy()
