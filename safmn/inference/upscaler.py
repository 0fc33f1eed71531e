"""Upscale arrays and tensors of any size with a network, from Python or for ``safmn upscale``."""

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
from safmn.inference import tiling, transparency, unchanged
from safmn.inference.backends.auto import chosen_logger
from safmn.inference.choices import DEFAULT_WEIGHTS
from safmn.inference.engine import Engine
from safmn.inference.guard import Finding, Watch
from safmn.inference.optimize import replica
from safmn.inference.streaming import STREAMING_BASE, bytes_per_column
from safmn.inference.tiling import Progress, TiledFrame, TileSize
from safmn.runtime.execution import named_device
from safmn.runtime.threads import Lock, Once, in_usable_thread
from safmn.system.memory import PeakMemory, drop_cached_memory, free_bytes, is_out_of_memory
from safmn.value_types import Array
from safmn.weights import kind_of, load_network, with_interface

logger = logging.getLogger(__name__)

Image = TypeVar("Image", Array, Tensor)

_DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Memory for the computation on the CPU, besides torch (0.4 GiB) and the images. With it, an 8K output needs < 2 GiB.
_CPU_BUDGET = 960 * 2**20
_PREPARED = ("_chain", "_window", "_lock", "_engine", "_first_warning", "_sample", "_measured")
_PROBE = 64  # pixels along each side of the frame on which memory is measured
_SAMPLE = 128  # maximum pixels along each side of the sample on which "auto" chooses a back end
_ENSEMBLE_BYTES = 12  # for each colour value of the result: the sum, one of the eight results, and that one flipped
_LITTLE = 10**10  # pixels times weights, about the multiply-adds: a third of a second on two CPU cores
_OVERSHOOT = 0.5  # floating-point values may be this far outside of 0 to 1


class Upscaler:
    """Upscales images with any network of :func:`safmn.load_network`.

    Any number of threads may call it at the same time. It can be pickled, copied and sent to other processes: the copy
    contains the network and the arguments, and builds its back end at its first call. A forked process also builds its
    own (on CUDA devices this raises, because a forked process cannot use them). For more see "In a server" in
    docs/upscaling.md.

    Args:
        weights: a weight file, the name of weights that come with the package, or a network, which is put into
            evaluation mode. What a network outside of the SAFMN family does not state in the attributes ``scale``,
            ``window`` and ``halo`` is found by trying (:mod:`safmn.archs.probing`). Its weights may change between
            calls, except by writing to their ``data``, which torch does not notice.
        scale: the scale that the weights must have. Weights that serve several scales need it.
        tile: "auto" cuts the image to fit into the free memory; a number is the width of the pieces in LR pixels; 0
            never cuts. Pieces equal the whole up to rounding (1e-5), unless the network sees the whole frame: then
            they overlap and fade into each other, and a warning is logged.
        device: "auto", "cpu", "cuda", "cuda:1", "xpu", "mps".
        precision: "fp32", "bf16" or "fp16".
        backend: what runs the network (:func:`safmn.inference.backends.available_backends`). "auto" takes the fastest
            installed one that gives the same result.
        self_ensemble: average over the eight flips and rotations: eight times the work, about 0.1 dB better.
        full_frame_semantics: for sizes that are not multiples of the window, run the network as published, with
            pooling adapted to the size of the frame; never cut. Without it, such an image is padded by mirroring.
        guard: replace the output by bicubic where it is garbage (:mod:`safmn.inference.guard`), and report it.

    Attributes:
        network: the network.
        scale: output pixels per input pixel, along each side.
        name: the name of the weights, for messages.

    Raises:
        WeightsError: the weights cannot be loaded.
        OptionError: an argument is invalid, or the back end or device cannot be used.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | nn.Module | None = None,
        *,
        scale: int | None = None,
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
            raise OptionError(f"backend={backend!r}: full_frame_semantics needs 'eager'")
        if tile != "auto" and (not isinstance(tile, (int, np.integer)) or isinstance(tile, bool) or tile < 0):
            raise OptionError(f"tile={tile!r}: choose 'auto', a width in pixels, or 0 for no tiles")
        self.device = named_device(device)
        network: Any = in_usable_thread(lambda: _load(weights, self.device, scale))
        self.network = network
        self.scale: int = network.scale
        self.tile: int | Literal["auto"] = 0 if full_frame_semantics else tile if tile == "auto" else int(tile)
        self.precision = precision
        self.backend = backend
        self.self_ensemble = self_ensemble
        self.full_frame_semantics = full_frame_semantics
        self.guard = guard
        self.name = kind_of(network) if isinstance(weights, nn.Module) else str(weights or DEFAULT_WEIGHTS)
        self._prepare()
        in_usable_thread(self._current_engine)  # raises an error for wrong arguments here, not at the first call

    def _prepare(self) -> None:
        """Set the attributes that follow from the network and the arguments."""
        self._chain = stages_of(self.network) or _as_one_stage(self.network)
        self._window: int = getattr(self.network, "window", 1)
        self._lock = Lock()  # for the engine and the measured memory
        self._engine: Engine | None = None
        self._first_warning = Once()
        self._sample: Tensor | None = None  # the middle of the first image, on which the back end is chosen
        self._measured: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments, and the network as bytes: tensors pickled directly may share memory with the copy."""
        weights = io.BytesIO()
        torch.save(self.network, weights)
        return self._arguments() | {"network": weights.getvalue(), "device": str(self.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the upscaler without its back end."""
        self.__dict__.update(state)
        self.device = named_device(state["device"])
        weights = io.BytesIO(state["network"])
        # The pickle that contains these bytes could run any code, so whoever loads it trusts it already.
        load = functools.partial(torch.load, weights, map_location=self.device, weights_only=False)
        self.network = in_usable_thread(load)
        self._prepare()

    def __deepcopy__(self, memo: dict[int, Any]) -> Upscaler:
        """Return an upscaler with a copy of the network. Unlike with pickle, its class need not be importable."""
        return self._with(copy.deepcopy(self.network, memo))

    def __copy__(self) -> Upscaler:
        """Return an upscaler with the same network."""
        return self._with(self.network)

    def _with(self, network: Any) -> Upscaler:
        other = type(self).__new__(type(self))
        other.__dict__.update(self._arguments(), network=network)
        other._prepare()
        return other

    def _arguments(self) -> dict[str, Any]:
        """Return all attributes except the network and those that :meth:`_prepare` sets."""
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
            report: called at most once, if the guard found something. Without it, a warning is logged.

        Returns:
            An image of the same kind, type, device and layout, ``scale`` times as high and wide; floating point in
            [0, 1]. Colours of invisible pixels (alpha 0) do not affect the visible ones.

        Raises:
            DataError: the argument is not such an image, or memory is too small.
            WeightsError: every part of the network's output contains NaN or Inf.
        """
        return in_usable_thread(lambda: self._upscaled(image, progress or (lambda part: None), report))

    @torch.inference_mode(False)  # the caller may have enabled it, but some back ends do not support it
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
        """Return an engine for the network's current weights. A call keeps its engine even if the weights change.

        Back ends hold converted copies of the weights, so they are rebuilt when the network's weights have changed.
        """
        engine = self._engine
        if engine is not None and engine.fits(self.network):
            return engine
        with self._lock:
            engine = self._engine  # another thread may have built it in the meantime
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

    def expect(self, pixels: int) -> None:
        """Announce that only this number of LR pixels will be upscaled. For little work, "auto" then is eager.

        Choosing and starting another back end would take longer than it saves.
        """
        weights = sum(weight.numel() for weight in self.network.parameters())
        little = pixels * weights * (8 if self.self_ensemble else 1) < _LITTLE
        engine = self._current_engine()
        if little and engine.whole.name == "auto":
            engine.settle("eager")
            reason = "another one takes longer to start than it saves here"
            chosen_logger.info("Back end eager, %s: %s.", self.precision, reason)

    def side_by_side(self, calls: int) -> int:
        """Return the largest number of LR pixels of images that may be computed by so many calls at once.

        It is 0 if one call at a time uses the device better, and before the first image if that decides on the back
        end.

        Args:
            calls: number of threads that call; each uses one thread of torch.
        """
        if self.device.type != "cpu" or not self._current_engine().whole.follows_threads:
            return 0
        budget = max(_CPU_BUDGET, free_bytes(self.device) / 8)
        return int(budget / calls / self._bytes_per_pixel())

    def exact_reach(self, height: int, width: int) -> tuple[int, int] | None:
        """Return how far a changed pixel of a frame changes the result.

        Args:
            height, width: of the frame in pixels.

        Returns:
            The distance in LR pixels, and the grid on which areas must begin and end, of which the distance is a
            multiple. None if an area with so much around it is not computed exactly as in the whole frame: on another
            back end than the native one, before it is chosen, if the frame is cut, and for networks that see it whole.
        """
        halo, grid = getattr(self.network, "halo", None), unchanged.grid_of(self._window)
        if halo is None or self.self_ensemble or self.full_frame_semantics:
            return None
        shape = torch.empty(1, 3, height, width, device="meta")
        frame = self._frame(shape, shape, None)
        if not self._current_engine().whole.exact_areas or not self.cut(frame).covers(frame):
            return None
        return -(-halo // grid) * grid, grid

    def _check_room(self, size: int, width: int, height: int) -> None:
        """Raise DataError if the result exceeds the free memory: the system would grant it, then kill the process."""
        free = free_bytes(torch.device("cpu"))
        if size > free:
            raise DataError(
                f"the result of {width}x{height} pixels at x{self.scale} takes {size / 2**30:.1f} GiB of memory; "
                f"{free / 2**30:.1f} GiB are free"
            )

    def _plane(
        self, engine: Engine, source: Tensor, target: Tensor, alpha: bool, progress: Progress, watch: Watch
    ) -> None:
        """Upscale the colours or the alpha of a batch: (B, 1 or 3, h, w) into (B, 1 or 3, h * scale, w * scale)."""
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
        """Write the mean over the eight flips and rotations (Timofte et al., CVPR 2016)."""
        image = source.to(torch.float32) / tiling.LARGEST.get(source.dtype, 1.0)
        total = torch.zeros(target.shape, device=source.device)
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(image, turns, (2, 3))
                turned = turned.flip(3) if flip else turned
                out = turned.new_empty(*turned.shape[:2], *(side * self.scale for side in turned.shape[2:]))
                self._frames(engine, turned, out, lambda part: progress(part / 8))
                total += torch.rot90(out.flip(3) if flip else out, -turns, (2, 3))
        TiledFrame(source, target, self.scale, 1, self.device, watch.broken).write(0, 0, total.div_(8))

    def _frames(
        self, engine: Engine, source: Tensor, target: Tensor, progress: Progress, broken: Tensor | None = None
    ) -> None:
        """Upscale a batch at once if it fits into memory uncut, otherwise image by image."""
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

    def _frame(self, source: Tensor, target: Tensor, broken: Tensor | None) -> TiledFrame:
        window = self._published_window if self.full_frame_semantics else self._window
        smallest = int(getattr(self.network, "smallest", 1))
        return TiledFrame(source, target, self.scale, window, self.device, broken, smallest)

    def _run(self, engine: Engine, frame: TiledFrame, cut: TileSize, progress: Progress) -> None:
        """Upscale a frame piece by piece. If memory runs out, continue with pieces of half the width."""
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
                logger.warning("Out of memory with tiles %d wide; continuing with %d.", cut.width, smaller.width)
                cut = smaller
                drop_cached_memory(self.device)

    def _piece(self, engine: Engine, frame: TiledFrame, cut: TileSize, left: int, progress: Progress) -> int:
        """Upscale the piece that begins at column ``left`` and return the column where it ends."""
        assert self._sample is not None
        if cut.covers(frame):
            if frame.height * frame.width >= _SAMPLE**2:  # on a smaller frame, "auto" chooses in the run itself
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
                "%s may depend on the whole frame, so tiles differ from the whole: they overlap by %d pixels and fade "
                "into each other. tile=0 computes the frame in one piece.",
                kind_of(self.network),
                tiling.OVERLAP,
            )

    # Size of the pieces

    def cut(self, frame: TiledFrame) -> TileSize:
        """Return the size of the pieces for a frame."""
        if self.tile == 0:
            return TileSize(frame.width, frame.height)
        if self.tile != "auto":
            side = -(-self.tile // self._window) * self._window
            cut = TileSize(side, side)
            return cut if self._chain is None or cut.covers(frame) else TileSize(side, min(side, tiling.BAND))
        budget = self._budget()
        bytes_per_pixel = self._bytes_per_pixel()
        if frame.height * frame.width * frame.batch * bytes_per_pixel <= budget:
            return TileSize(frame.width, frame.height)
        if self._chain is None:
            return tiling.choose_tile(budget, bytes_per_pixel * frame.batch, self._window)
        budget -= STREAMING_BASE
        needed = functools.partial(bytes_per_column, self._chain)
        return tiling.choose_strip(frame, budget, self.network.halo, self._window, needed)

    def _budget(self) -> float:
        free = free_bytes(self.device)
        return free * 0.8 if self.device.type in ("cuda", "xpu") else min(free * 0.5, _CPU_BUDGET)

    def _bytes_per_pixel(self) -> float:
        """Return the peak memory per pixel of an uncut frame, measured on a small frame at the first call."""
        with self._lock:
            if self._measured is None:
                side = -(-_PROBE // self._window) * self._window
                with PeakMemory() as memory, torch.no_grad():
                    tiling.run_whole(self._blank(side, side), replica(self.network), lambda part: None)
                self._measured = memory.peak / side**2
            return self._measured

    def _blank(self, height: int, width: int) -> TiledFrame:
        source, target = (torch.zeros(1, 3, height * k, width * k, dtype=torch.uint8) for k in (1, self.scale))
        return TiledFrame(source, target, self.scale, self._window, self.device)

    @property
    def _published_window(self) -> int:
        """Sides must be multiples of this even with ``full_frame_semantics``, since the network unshuffles pixels."""
        return math.prod(part.down for part in self._chain or () if isinstance(part, Stage))


def _load(weights: str | os.PathLike[str] | nn.Module | None, device: torch.device, scale: int | None) -> nn.Module:
    """Return the network, from RGB to RGB, in evaluation mode on the device."""
    if isinstance(weights, nn.Module):
        network = with_interface(weights.to(device).eval())
        if scale is not None and scale != network.scale:
            raise OptionError(f"scale={scale}: the network's is {network.scale}")
        return network
    if not (weights is None or isinstance(weights, (str, os.PathLike))):
        raise OptionError(f"weights={weights!r}: give a file, the name of weights or a network")
    try:
        return load_network(DEFAULT_WEIGHTS if weights is None else weights, device=device, scale=scale)
    except WeightsError as error:
        if weights is not None or scale is not None:
            raise
        raise WeightsError(
            f"the default weights {DEFAULT_WEIGHTS!r} are not installed; give a file with --weights ({error})"
        ) from error


def _middle(side: int, window: int) -> tuple[int, int]:
    """Return where the sample begins and ends along a side. Its length is a multiple of the window if the side is."""
    size = min(max(_SAMPLE // window, 1) * window, side)
    start = (side - size) // 2 // window * window
    return start, start + size


def _as_one_stage(network: nn.Module) -> Chain | None:
    """Return a network outside of the family as a chain of one stage; None if it does not state its halo."""
    halo, window = getattr(network, "halo", None), getattr(network, "window", 1)
    if not isinstance(halo, int) or isinstance(network, tuple(FAMILY)):
        return None  # a subclass of one of our networks may need more than the halo that it inherits
    return (Stage(Plain(network, 3, window), 3, -(-halo // window) * window, window, up=int(cast(int, network.scale))),)


def _planes(channels: int) -> list[slice]:
    """Return the channels of the colours and, if there is one, of alpha."""
    colours = 1 if channels <= 2 else 3
    return [slice(0, colours)] + ([slice(colours, channels)] if channels in (2, 4) else [])


def _is_flat(plane: Tensor) -> bool:
    values = plane.to(torch.float32)
    return bool((values == values[0, 0, 0, 0]).all())


def _as_batch(image: object) -> Tensor:
    """Return any accepted image as (B, C, h, w), sharing its memory where possible."""
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
    """Raise DataError for values that would give a white or black result, such as 0 to 255 or NaN.

    Filters and resizing may leave the range of 0 to 1 a little. Such values are accepted, and the result is clamped.
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
    """Return (B, C, H, W) in the layout of the input image."""
    target = target[(0,) * (4 - image.ndim)]
    if isinstance(image, Tensor):
        return target
    return (target.movedim(-3, -1) if image.ndim > 2 else target).numpy()
