"""Line art with screentone, as in printed comics: ink, hatching, dots, speed lines, balloons with letters."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from safmn.data.drawing.fields import shrunk
from safmn.data.drawing.shapes import size
from safmn.value_types import Array

Page = NDArray[np.float32]  # (H, W), 0 is ink, 255 is paper


def _pen(rng: np.random.Generator) -> int:
    """Draw the width of a line in pixels; most are thin."""
    return round(size(rng, 1, 8))


def _curve(rng: np.random.Generator, side: int, reach: float) -> NDArray[np.int32]:
    """Draw a smooth curve of about ``reach`` pixels, as points in sixteenths of a pixel."""
    start, heading = rng.uniform(0, side, 2), rng.uniform(0, 2 * math.pi)
    steps = 24
    turn = np.cumsum(rng.normal(0, rng.uniform(0.02, 0.3)) + rng.normal(0, 0.08, steps).cumsum() * 0.5)
    way = np.stack([np.cos(heading + turn), np.sin(heading + turn)], axis=1) * (reach / steps)
    return np.rint((start + way.cumsum(axis=0)) * 16).astype(np.int32)


def _tone(rng: np.random.Generator, page: Page, mask: NDArray[np.bool_]) -> None:
    """Fill a region with screentone: dots on a grid turned by 45 degrees or so, lines, or plain grey."""
    side = len(page)
    x, y = np.arange(side, dtype=np.float32)[None], np.arange(side, dtype=np.float32)[:, None]
    pitch, angle = size(rng, 6, 28), rng.choice([45.0, 45.0, 30.0, float(rng.uniform(0, 90))])
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = (x * cosine + y * sine) / pitch % 1 - 0.5, (y * cosine - x * sine) / pitch % 1 - 0.5
    tone = np.full((side, side), rng.uniform(0.1, 0.6), np.float32)
    if rng.random() < 0.4:
        way = (x * float(rng.normal()) + y * float(rng.normal())) / side
        tone = np.clip((way - way.min()) / max(float(np.ptp(way)), 1e-6), 0, 1)
    form = rng.random()
    if form < 0.7:
        cover = np.clip((np.sqrt(tone / math.pi) * 1.1 - np.hypot(along, across)) * pitch + 0.5, 0, 1)
    elif form < 0.85:
        cover = np.clip((tone / 2 - np.abs(along)) * pitch + 0.5, 0, 1)
    else:
        cover = tone
    page[mask] = (page * (1 - cover))[mask]


def _region(rng: np.random.Generator, side: int) -> NDArray[np.int32]:
    """Draw a closed outline with a few bends."""
    count = int(rng.integers(3, 9))
    turns, middle = np.sort(rng.uniform(0, 2 * math.pi, count)), rng.uniform(0, side, 2)
    reach = size(rng, side / 10, side / 1.5) * rng.uniform(0.5, 1.2, count)
    points = middle + np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1)
    for _ in range(int(rng.integers(0, 4))):  # cut corners (Chaikin), up to a smooth curve
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return np.rint(points * 16).astype(np.int32)


def _hatching(rng: np.random.Generator, page: Page) -> None:
    side, pitch = len(page), size(rng, 5, 24)
    angle, middle, length = rng.uniform(0, math.pi), rng.uniform(0, side, 2), size(rng, 20, side / 2)
    way, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    for line in range(int(rng.integers(4, 24))):
        start = middle + across * line * pitch + way * rng.normal(0, pitch)
        ends = np.rint(np.stack([start, start + way * length * rng.uniform(0.6, 1)]) * 16).astype(np.int32)
        cv2.polylines(page, [ends], False, 0, int(rng.integers(1, 4)), cv2.LINE_8, 4)


def _speed_lines(rng: np.random.Generator, page: Page) -> None:
    side = len(page)
    middle = rng.uniform(-0.3, 1.3, 2) * side
    for turn in rng.uniform(0, 2 * math.pi, int(rng.integers(30, 160))):
        near, half = side * rng.uniform(0.2, 0.7), rng.uniform(0.002, 0.02)
        points = [(near, turn), (2 * side, turn - half), (2 * side, turn + half)]
        wedge = [middle + reach * np.array([math.cos(way), math.sin(way)]) for reach, way in points]
        cv2.fillPoly(page, [np.rint(np.array(wedge) * 16).astype(np.int32)], 0, cv2.LINE_8, 4)


def _balloon(rng: np.random.Generator, page: Page) -> None:
    """Draw an ellipse with some lines of letters."""
    side = len(page)
    middle, width, height = rng.uniform(0, side, 2), size(rng, side / 8, side / 3), size(rng, side / 8, side / 2.5)
    place, axes, thick = (round(middle[0]), round(middle[1])), (round(width), round(height)), int(rng.integers(2, 6))
    cv2.ellipse(page, place, axes, 0, 0, 360, 255, -1)
    cv2.ellipse(page, place, axes, 0, 0, 360, 0, thick)
    letter = max(size(rng, 12, 48), 10.0)
    for top in np.arange(middle[1] - 0.6 * height, middle[1] + 0.6 * height, 1.3 * letter):
        line = "".join(chr(code) for code in rng.integers(65, 91, int(1.3 * width / letter)))
        at = (round(middle[0] - 0.65 * width), round(top + letter))
        cv2.putText(page, line, at, cv2.FONT_HERSHEY_DUPLEX, letter / 30, 0, max(round(letter / 14), 1), cv2.LINE_8)


def manga(rng: np.random.Generator, side: int) -> Array:
    """Draw a part of a page of black and white comics."""
    large = 2 * side
    page = np.full((large, large), 255 if rng.random() < 0.85 else float(rng.uniform(0, 255)), np.float32)
    if rng.random() < 0.25:
        _speed_lines(rng, page)
    for _ in range(int(rng.integers(3, 11))):
        outline, mask = _region(rng, large), np.zeros((large, large), np.uint8)
        cv2.fillPoly(mask, [outline], 1, cv2.LINE_8, 4)
        form = rng.random()
        if form < 0.5:
            _tone(rng, page, mask > 0)
        elif form < 0.8:
            page[mask > 0] = 0 if form < 0.65 else 255
        cv2.polylines(page, [outline], True, 0, _pen(rng), cv2.LINE_8, 4)
    for _ in range(int(rng.integers(5, 50))):
        curve = _curve(rng, large, size(rng, large / 16, large))
        cv2.polylines(page, [curve], False, 0 if rng.random() < 0.9 else 255, _pen(rng), cv2.LINE_8, 4)
    for _ in range(int(rng.integers(0, 6))):
        _hatching(rng, page)
    if rng.random() < 0.4:
        _balloon(rng, page)
    if rng.random() < 0.3:  # the border between two panels
        gutter, at = round(size(rng, 8, 60)), int(rng.integers(large))
        strip = page if rng.random() < 0.5 else page.T
        strip[at : at + gutter] = 255
        strip[max(at - 5, 0) : at] = 0
        strip[at + gutter : at + gutter + 5] = 0
    return shrunk(np.repeat(page[..., None], 3, axis=2), side)
