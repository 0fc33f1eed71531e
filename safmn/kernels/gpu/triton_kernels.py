"""Triton kernels for the blocks of SAFMN, forward and backward: what lies between two dense 3x3 convolutions, fused.

An image is (pixels, channels) in memory, pixels row by row (channels_last). A *window* is 8x8 pixels, what the coarsest
pooling takes the maximum of; kernels that pool take one at a time, its pixels in Morton order (y and x interleaved bit
by bit): 4, 16 or 64 consecutive ones are then what level 1, 2 or 3 pools, and pooling and enlarging are reshapes.

``features``, ``levels`` and ``slopes`` hold all four levels one after the other. ``features``: level 0 is the whole
normalised image, (pixels, dim); level l its last quarter but 3 - l, pooled: (pixels / 4**l, dim / 4). ``levels``, what
the depthwise convolutions give, and ``slopes``, its gradient: (pixels / 4**l, dim / 4) at every level.

Tiles are padded to powers of two. Sums over all pixels are partial: each program has a row, to be added by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

WINDOW_PIXELS = 64


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _morton(index):
    """Row and column of pixel ``index`` in its window."""
    row = ((index >> 1) & 1) | ((index >> 2) & 2) | ((index >> 3) & 4)
    column = (index & 1) | ((index >> 1) & 2) | ((index >> 2) & 4)
    return row, column


@triton.jit
def _level_start(level: tl.constexpr, pixels, first: tl.constexpr, quarter: tl.constexpr):
    """Where a level begins in ``features`` (``first``: dim channels in level 0) or ``slopes`` (dim / 4)."""
    if level == 0:
        return 0
    start = pixels * first
    if level > 1:
        start += pixels // 4 * quarter
    if level > 2:
        start += pixels // 16 * quarter
    return start


@triton.jit
def _place(window, level: tl.constexpr, height, width):
    """The level's pixels in a window: image, rows and columns, (64 / 4**level,) each, and the level's size."""
    rows, columns = height // 8, width // 8
    image = window // (rows * columns)
    row, column = _morton(tl.arange(0, 64 >> (2 * level)))
    row += window // columns % rows * (8 >> level)
    column += window % columns * (8 >> level)
    return image, row, column, height >> level, width >> level


@triton.jit
def _pixels(window, height, width):
    """Indices of a window's pixels, (64,)."""
    image, row, column, height, width = _place(window, 0, height, width)
    return (image * height + row) * width + column


@triton.jit
def _pooled(tile, channels: tl.constexpr, count: tl.constexpr):
    """The maximum of each four consecutive pixels: (4 * count, channels) to (count, channels)."""
    return tl.max(tl.reshape(tile, (count, 4, channels)), axis=1)


@triton.jit
def _spread(tile, level: tl.constexpr, channels: tl.constexpr):
    """Nearest neighbours: a level's (64 / 4**level, channels) to (64, channels)."""
    if level == 0:
        return tile
    count: tl.constexpr = 64 >> (2 * level)
    share: tl.constexpr = 64 // count
    return tl.reshape(tl.broadcast_to(tl.expand_dims(tile, 1), (count, share, channels)), (64, channels))


@triton.jit
def _gathered(tile, level: tl.constexpr, channels: tl.constexpr):
    """The transpose of _spread: sums of a level's pixels."""
    if level == 0:
        return tile
    count: tl.constexpr = 64 >> (2 * level)
    return tl.sum(tl.reshape(tile, (count, 64 // count, channels)), axis=1)


@triton.jit
def _normalised(tile, dim: tl.constexpr, channels, eps):
    """Layer norm without its gain: (64, padded) to the same, and 1 / deviation (64,)."""
    mean = tl.sum(tile, axis=1) / dim
    centred = tl.where((channels < dim)[None, :], tile - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, axis=1) / dim + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def _convolved(source, weight, window, start, stride, level: tl.constexpr, height, width,
               quarter: tl.constexpr, padded: tl.constexpr, flipped: tl.constexpr):  # fmt: skip
    """A level's depthwise 3x3 convolution, without bias, or its transpose: (64 / 4**level, padded), float32.

    ``start`` and ``stride``: where the level begins in ``source`` and how far apart its pixels are.
    """
    image, row, column, height, width = _place(window, level, height, width)
    channel = tl.arange(0, padded)
    inside = channel < quarter
    total = tl.zeros((64 >> (2 * level), padded), tl.float32)
    for tap in tl.static_range(9):
        at_row, at_column = row + (tap // 3 - 1), column + (tap % 3 - 1)
        there = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
        pixel = (image * height + at_row) * width + at_column
        address = source + start + pixel[:, None] * stride + channel[None, :]
        value = tl.load(address, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        number = 8 - tap if flipped else tap
        gain = tl.load(weight + (level * quarter + channel) * 9 + number, mask=inside, other=0.0)
        total += value * gain[None, :]
    return total


@triton.jit
def _level_place(source, window, level: tl.constexpr, pixels, height, width, first: tl.constexpr,
                 quarter: tl.constexpr, padded: tl.constexpr):  # fmt: skip
    """Addresses of a level's pixels in a window, (64 / 4**level, padded), where they are dim / 4 channels apart."""
    image, row, column, height, width = _place(window, level, height, width)
    pixel = (image * height + row) * width + column
    start = _level_start(level, pixels, first, quarter)
    return source + start + pixel[:, None] * quarter + tl.arange(0, padded)[None, :]


@triton.jit
def _level(features, weight, bias, levels, window, level: tl.constexpr, pixels, height, width,
           dim: tl.constexpr, quarter: tl.constexpr, padded: tl.constexpr):  # fmt: skip
    """A level after its depthwise convolution, stored in ``levels`` and enlarged: (64, padded), its type."""
    stride: tl.constexpr = dim if level == 0 else quarter
    start = _level_start(level, pixels, dim, quarter)
    channel = tl.arange(0, padded)
    inside = channel < quarter
    tile = _convolved(features, weight, window, start, stride, level, height, width, quarter, padded, False)
    tile += tl.load(bias + level * quarter + channel, mask=inside, other=0.0)[None, :]
    tile = tile.to(levels.dtype.element_ty)
    place = _level_place(levels, window, level, pixels, height, width, quarter, quarter, padded)
    tl.store(place, tile, mask=inside[None, :])
    return _spread(tile, level, padded)


@triton.jit
def _part(matrix, level: tl.constexpr, dim: tl.constexpr, quarter: tl.constexpr, padded: tl.constexpr,
          wide: tl.constexpr):  # fmt: skip
    """The columns of the (dim, dim) matrix ``aggr`` that a level meets: (wide, padded)."""
    row, column = tl.arange(0, wide), tl.arange(0, padded)
    address = matrix + row[:, None] * dim + level * quarter + column[None, :]
    return tl.load(address, mask=(row < dim)[:, None] & (column < quarter)[None, :], other=0.0)


@triton.jit
def norm_and_pool(x, gain, shift, features, pixels, height, width, eps,
                  dim: tl.constexpr, quarter: tl.constexpr, wide: tl.constexpr):  # fmt: skip
    """``features`` of x (pixels, dim); a program for each window."""
    window = tl.program_id(0)
    channel = tl.arange(0, wide)
    inside = (channel < dim)[None, :]
    address = _pixels(window, height, width)[:, None] * dim + channel[None, :]
    tile, _ = _normalised(tl.load(x + address, mask=inside, other=0.0), dim, channel, eps)
    tile = tile * tl.load(gain + channel, mask=channel < dim, other=0.0)[None, :]
    tile = (tile + tl.load(shift + channel, mask=channel < dim, other=0.0)[None, :]).to(features.dtype.element_ty)
    tl.store(features + address, tile, mask=inside)
    tile = tile.to(tl.float32)
    for level in tl.static_range(1, 4):
        tile = _pooled(tile, wide, 64 >> (2 * level))
        own = channel - level * quarter
        place = _level_place(features - level * quarter, window, level, pixels, height, width, dim, quarter, wide)
        tl.store(place, tile.to(features.dtype.element_ty), mask=((own >= 0) & (own < quarter))[None, :])


@triton.jit
def modulate(x, features, depthwise, depthwise_bias, aggr, aggr_bias, gain, shift, levels, gates, modulated, normed,
             pixels, height, width, eps, dim: tl.constexpr, quarter: tl.constexpr, wide: tl.constexpr,
             padded: tl.constexpr, aligned: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """``modulated`` = x + gelu(gates) * features, float32, and ``normed``, its norm, (pixels, aligned).

    ``gates`` = aggr(levels), (pixels, dim).
    """
    window = tl.program_id(0)
    channel = tl.arange(0, wide)
    known = channel < dim
    gate = tl.zeros((64, wide), tl.float32)
    for level in tl.static_range(4):
        tile = _level(features, depthwise, depthwise_bias, levels, window, level, pixels, height, width, dim, quarter,
                      padded)  # fmt: skip
        part = _part(aggr, level, dim, quarter, padded, wide)
        gate = tl.dot(tile, tl.trans(part), gate, input_precision=precision)
    gate += tl.load(aggr_bias + channel, mask=known, other=0.0)[None, :]
    pixel = _pixels(window, height, width)
    address = pixel[:, None] * dim + channel[None, :]
    tl.store(gates + address, gate.to(gates.dtype.element_ty), mask=known[None, :])
    feature = tl.load(features + address, mask=known[None, :], other=0.0).to(tl.float32)
    tile = tl.load(x + address, mask=known[None, :], other=0.0) + _gelu(gate) * feature
    tl.store(modulated + address, tile, mask=known[None, :])
    tile, _ = _normalised(tile, dim, channel, eps)
    tile = tile * tl.load(gain + channel, mask=known, other=0.0)[None, :]
    tile = tile + tl.load(shift + channel, mask=known, other=0.0)[None, :]
    place = normed + pixel[:, None] * aligned + channel[None, :]
    tl.store(place, tile.to(normed.dtype.element_ty), mask=(channel < aligned)[None, :])


@triton.jit
def feed_forward(modulated, mixed, mixed_bias, back, back_bias, result, dim: tl.constexpr, hidden: tl.constexpr,
                 wide: tl.constexpr, broad: tl.constexpr, rows: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """``result`` = modulated + back(gelu(mixed + bias)), (pixels, dim) float32; a program for each ``rows`` pixels."""
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    channel, unit = tl.arange(0, wide), tl.arange(0, broad)
    known, active = channel < dim, unit < hidden
    tile = tl.load(mixed + pixel[:, None] * hidden + unit[None, :], mask=active[None, :], other=0.0).to(tl.float32)
    tile = _gelu(tile + tl.load(mixed_bias + unit, mask=active, other=0.0)[None, :]).to(mixed.dtype.element_ty)
    address = pixel[:, None] * dim + channel[None, :]
    total = tl.load(modulated + address, mask=known[None, :], other=0.0)
    total += tl.load(back_bias + channel, mask=known, other=0.0)[None, :]
    matrix = back + channel[None, :] * hidden + unit[:, None]  # transposed: (broad, wide)
    matrix = tl.load(matrix, mask=known[None, :] & active[:, None], other=0.0)
    total = tl.dot(tile, matrix, total, input_precision=precision)
    tl.store(result + address, total, mask=known[None, :])


@triton.jit
def feed_forward_backward(slope, mixed, mixed_bias, back, mixed_slope, back_sums, bias_sums, pixels,
                          dim: tl.constexpr, hidden: tl.constexpr, wide: tl.constexpr, chunk: tl.constexpr,
                          rows: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """``mixed_slope``, the gradient of ``mixed``, of ``slope``, that of the result.

    Grid: (chunks of mixed's channels, programs). Partial sums: ``back_sums`` (programs, chunks, wide, chunk),
    ``bias_sums`` (programs, chunks, wide + chunk): of back's bias, in each chunk alike, then of mixed's.
    """
    channel, unit = tl.arange(0, wide), tl.program_id(0) * chunk + tl.arange(0, chunk)
    known, active = channel < dim, unit < hidden
    kind = mixed.dtype.element_ty
    matrix = back + channel[:, None] * hidden + unit[None, :]
    matrix = tl.load(matrix, mask=known[:, None] & active[None, :], other=0.0)
    bias = tl.load(mixed_bias + unit, mask=active, other=0.0)[None, :]
    back_total = tl.zeros((wide, chunk), tl.float32)
    back_bias, mixed_total = tl.zeros((wide,), tl.float32), tl.zeros((chunk,), tl.float32)
    for start in range(tl.program_id(1) * rows, pixels, tl.num_programs(1) * rows):
        pixel = start + tl.arange(0, rows)
        above = tl.load(slope + pixel[:, None] * dim + channel[None, :], mask=known[None, :], other=0.0)
        place = pixel[:, None] * hidden + unit[None, :]
        before = tl.load(mixed + place, mask=active[None, :], other=0.0).to(tl.float32) + bias
        below = tl.dot(above.to(kind), matrix, input_precision=precision) * _gelu_slope(before)
        tl.store(mixed_slope + place, below.to(kind), mask=active[None, :])
        back_total = tl.dot(tl.trans(above.to(kind)), _gelu(before).to(kind), back_total, input_precision=precision)
        back_bias += tl.sum(above, axis=0)
        mixed_total += tl.sum(below, axis=0)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(back_sums + (program * wide + channel[:, None]) * chunk + tl.arange(0, chunk)[None, :], back_total)
    place = bias_sums + program * (wide + chunk)
    tl.store(place + channel, back_bias)
    tl.store(place + wide + tl.arange(0, chunk), mixed_total)


@triton.jit
def _send_down(gate_slope, aggr, levels, slopes, total, window, level: tl.constexpr, pixels, height, width,
               dim: tl.constexpr, quarter: tl.constexpr, wide: tl.constexpr, padded: tl.constexpr,
               precision: tl.constexpr):  # fmt: skip
    """A level's gradient, stored in ``slopes``; returns ``total`` and what the window adds to aggr's gradient."""
    inside = (tl.arange(0, padded) < quarter)[None, :]
    part = _part(aggr, level, dim, quarter, padded, wide)
    down = _gathered(tl.dot(gate_slope, part, input_precision=precision), level, padded)
    place = _level_place(slopes, window, level, pixels, height, width, quarter, quarter, padded)
    tl.store(place, down.to(slopes.dtype.element_ty), mask=inside)
    place = _level_place(levels, window, level, pixels, height, width, quarter, quarter, padded)
    tile = _spread(tl.load(place, mask=inside, other=0.0), level, padded)
    return tl.dot(tl.trans(gate_slope), tile, total, input_precision=precision)


@triton.jit
def _put_part(sums, total, level: tl.constexpr, wide: tl.constexpr, padded: tl.constexpr):
    row, column = tl.arange(0, wide), tl.arange(0, padded)
    place = sums + ((tl.program_id(0) * 4 + level) * wide + row[:, None]) * padded + column[None, :]
    tl.store(place, total)


@triton.jit
def modulate_backward(x, features, gates, gain, slope, normed_slope, x_slope, feature_slope, gate_slope, sums, eps,
                      dim: tl.constexpr, wide: tl.constexpr, aligned: tl.constexpr, rows: tl.constexpr):  # fmt: skip
    """Gradients through the second norm and the product of ``modulate``; a program for each ``rows`` pixels.

    ``slope`` is that of modulated as the residual carries it, ``normed_slope`` that of normed. Gives that of x without
    what comes through features (``x_slope``), what the product gives features, and that of gates. ``sums``:
    (programs, 3, dim), partial, of aggr's bias, the norm's gain and its shift.
    """
    channel = tl.arange(0, wide)
    known = (channel < dim)[None, :]
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    address = pixel[:, None] * dim + channel[None, :]
    kind = gates.dtype.element_ty
    place = sums + tl.program_id(0) * 3 * dim + channel
    gate = tl.load(gates + address, mask=known, other=0.0).to(tl.float32)
    feature = tl.load(features + address, mask=known, other=0.0).to(tl.float32)
    opened = _gelu(gate)
    unit, inverse = _normalised(tl.load(x + address, mask=known, other=0.0) + opened * feature, dim, channel, eps)
    above = tl.load(normed_slope + pixel[:, None] * aligned + channel[None, :], mask=known, other=0.0).to(tl.float32)
    tl.store(place + dim, tl.sum(above * unit, axis=0), mask=channel < dim)
    tl.store(place + 2 * dim, tl.sum(above, axis=0), mask=channel < dim)
    above = above * tl.load(gain + channel, mask=channel < dim, other=0.0)[None, :]
    first, second = tl.sum(above, axis=1) / dim, tl.sum(above * unit, axis=1) / dim
    total = (above - first[:, None] - unit * second[:, None]) * inverse[:, None]
    total += tl.load(slope + address, mask=known, other=0.0)
    tl.store(x_slope + address, total, mask=known)
    tl.store(feature_slope + address, (total * opened).to(kind), mask=known)
    total = total * feature * _gelu_slope(gate)
    tl.store(gate_slope + address, total.to(kind), mask=known)
    tl.store(place, tl.sum(total, axis=0), mask=channel < dim)


@triton.jit
def aggregate_backward(gate_slope, levels, aggr, slopes, aggr_sums, windows, pixels, height, width, dim: tl.constexpr,
                       quarter: tl.constexpr, wide: tl.constexpr, padded: tl.constexpr,
                       precision: tl.constexpr):  # fmt: skip
    """``slopes`` of ``gate_slope``, and partial sums of aggr's gradient: (programs, 4 levels, wide, padded)."""
    channel = tl.arange(0, wide)
    total0, total1 = tl.zeros((wide, padded), tl.float32), tl.zeros((wide, padded), tl.float32)
    total2, total3 = tl.zeros((wide, padded), tl.float32), tl.zeros((wide, padded), tl.float32)
    for window in range(tl.program_id(0), windows, tl.num_programs(0)):
        address = gate_slope + _pixels(window, height, width)[:, None] * dim + channel[None, :]
        down = tl.load(address, mask=(channel < dim)[None, :], other=0.0)
        total0 = _send_down(down, aggr, levels, slopes, total0, window, 0, pixels, height, width, dim, quarter, wide,
                            padded, precision)  # fmt: skip
        total1 = _send_down(down, aggr, levels, slopes, total1, window, 1, pixels, height, width, dim, quarter, wide,
                            padded, precision)  # fmt: skip
        total2 = _send_down(down, aggr, levels, slopes, total2, window, 2, pixels, height, width, dim, quarter, wide,
                            padded, precision)  # fmt: skip
        total3 = _send_down(down, aggr, levels, slopes, total3, window, 3, pixels, height, width, dim, quarter, wide,
                            padded, precision)  # fmt: skip
    _put_part(aggr_sums, total0, 0, wide, padded)
    _put_part(aggr_sums, total1, 1, wide, padded)
    _put_part(aggr_sums, total2, 2, wide, padded)
    _put_part(aggr_sums, total3, 3, wide, padded)


@triton.jit
def depthwise_sums(features, slopes, sums, pixels, height, width, dim: tl.constexpr, quarter: tl.constexpr,
                   padded: tl.constexpr, tile: tl.constexpr):  # fmt: skip
    """Gradients of the depthwise kernels: ``sums`` (parts, 4 levels, 9 taps and the bias, padded), partial.

    Grid: (40: level and tap, parts).
    """
    level, tap = tl.program_id(0) // 10, tl.program_id(0) % 10
    part, parts = tl.program_id(1), tl.num_programs(1)
    rows, columns, count = height >> level, width >> level, pixels >> (2 * level)
    stride = tl.where(level == 0, dim, quarter)
    before = tl.where(level > 1, pixels // 4 * quarter, 0) + tl.where(level > 2, pixels // 16 * quarter, 0)
    source = features + before + tl.where(level > 0, pixels * dim, 0)
    slope = slopes + before + tl.where(level > 0, pixels * quarter, 0)
    channel = tl.arange(0, padded)
    inside = (channel < quarter)[None, :]
    total = tl.zeros((tile, padded), tl.float32)
    for first in range(part * tile, count, parts * tile):
        pixel = first + tl.arange(0, tile)
        row, column = pixel // columns % rows + (tap // 3 - 1), pixel % columns + (tap % 3 - 1)
        there = (pixel < count) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        neighbour = pixel + (tap // 3 - 1) * columns + (tap % 3 - 1)
        there = tl.where(tap == 9, pixel < count, there)
        neighbour = tl.where(tap == 9, 0, neighbour)
        mask = there[:, None] & inside
        value = tl.load(source + neighbour[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.where(tap == 9, 1.0, value)
        total += value * tl.load(slope + pixel[:, None] * quarter + channel[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    tl.store(sums + (part * 40 + tl.program_id(0)) * padded + channel, tl.sum(total, axis=0))


@triton.jit
def _add_slope(features, slopes, weight, feature_slope, window, level: tl.constexpr, pixels, height, width,
               dim: tl.constexpr, quarter: tl.constexpr, padded: tl.constexpr):  # fmt: skip
    inside = (tl.arange(0, padded) < quarter)[None, :]
    own = _pixels(window, height, width)[:, None] * dim + level * quarter + tl.arange(0, padded)[None, :]
    start = _level_start(level, pixels, quarter, quarter)
    down = _convolved(slopes, weight, window, start, quarter, level, height, width, quarter, padded, True)
    if level > 0:
        feature = tl.load(features + own, mask=inside, other=0.0).to(tl.float32)
        place = _level_place(features, window, level, pixels, height, width, dim, quarter, padded)
        largest = _spread(tl.load(place, mask=inside, other=0.0).to(tl.float32), level, padded)
        reached = (feature == largest).to(tl.float32)
        down = reached * _spread(down / _gathered(reached, level, padded), level, padded)
    total = tl.load(feature_slope + own, mask=inside, other=0.0).to(tl.float32) + down
    tl.store(feature_slope + own, total.to(feature_slope.dtype.element_ty), mask=inside)


@triton.jit
def features_backward(features, slopes, weight, feature_slope, pixels, height, width, dim: tl.constexpr,
                      quarter: tl.constexpr, padded: tl.constexpr):  # fmt: skip
    """Add to ``feature_slope`` what comes through pooling and depthwise convolutions.

    Of a pooled level every pixel that reaches the maximum gets its share. Grid: (windows, 4 levels).
    """
    window, level = tl.program_id(0), tl.program_id(1)
    if level == 0:
        _add_slope(features, slopes, weight, feature_slope, window, 0, pixels, height, width, dim, quarter, padded)
    elif level == 1:
        _add_slope(features, slopes, weight, feature_slope, window, 1, pixels, height, width, dim, quarter, padded)
    elif level == 2:
        _add_slope(features, slopes, weight, feature_slope, window, 2, pixels, height, width, dim, quarter, padded)
    else:
        _add_slope(features, slopes, weight, feature_slope, window, 3, pixels, height, width, dim, quarter, padded)


@triton.jit
def norm_backward(x, gain, feature_slope, x_slope, sums, eps, dim: tl.constexpr, wide: tl.constexpr,
                  rows: tl.constexpr):  # fmt: skip
    """Add to ``x_slope`` what comes through the norm; a program for each ``rows`` pixels.

    ``sums``: (programs, 2, dim), partial, of the norm's gain and shift.
    """
    channel = tl.arange(0, wide)
    known = channel < dim
    pixel = tl.program_id(0) * rows + tl.arange(0, rows)
    address = pixel[:, None] * dim + channel[None, :]
    unit, inverse = _normalised(tl.load(x + address, mask=known[None, :], other=0.0), dim, channel, eps)
    above = tl.load(feature_slope + address, mask=known[None, :], other=0.0).to(tl.float32)
    place = sums + tl.program_id(0) * 2 * dim + channel
    tl.store(place, tl.sum(above * unit, axis=0), mask=known)
    tl.store(place + dim, tl.sum(above, axis=0), mask=known)
    above = above * tl.load(gain + channel, mask=known, other=0.0)[None, :]
    first, second = tl.sum(above, axis=1) / dim, tl.sum(above * unit, axis=1) / dim
    total = (above - first[:, None] - unit * second[:, None]) * inverse[:, None]
    total += tl.load(x_slope + address, mask=known[None, :], other=0.0)
    tl.store(x_slope + address, total, mask=known[None, :])
