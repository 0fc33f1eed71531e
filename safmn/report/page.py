"""One self-contained HTML page: style, scripts and images are in the file, and its policy allows no request."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import cv2

from safmn import __version__
from safmn.imaging import encode_png
from safmn.value_types import Array

_STYLES = ("page.css",)
_SCRIPTS = ("page.js", "charts.js", "compare.js", "tables.js")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
JPEG_QUALITY = 92
MAX_SIDE = 640
"""Larger images are cropped to this many pixels along each side: shrinking would hide what the network did."""


class Page:
    """A page that is put together section by section.

    Args:
        title: its heading.
        subtitle: one line of plain text below it.
        megabytes: limit of all embedded images together.
    """

    def __init__(self, title: str, subtitle: str = "", *, megabytes: float = 24.0) -> None:
        self.title = title
        self.subtitle = subtitle
        self.series: list[str] = []  # names of runs or methods; each has a colour and can be hidden everywhere
        self.left_out = 0  # images beyond the limit
        self._budget = megabytes * 1e6
        self._sections: list[tuple[str, str, str]] = []
        self._images: dict[str, str] = {}

    def add_section(self, heading: str, content: str) -> None:
        """Add a section with a heading, which also gets a link in the page's navigation.

        Args:
            content: HTML, made by :mod:`safmn.report.widgets`.
        """
        self._sections.append((f"s{len(self._sections) + 1}", heading, content))

    def image(self, pixels: Array, *, lossless: bool = False) -> str | None:
        """Embed an image once and return its key, or None if that would exceed the limit.

        Args:
            pixels: uint8 (H, W, 3) RGB.
            lossless: as PNG, for small images; otherwise as JPEG without chroma subsampling.
        """
        content = encode_png(pixels, compression=9) if lossless else _jpeg(pixels)
        key = "i" + hashlib.sha256(content).hexdigest()[:12]
        if key in self._images:
            return key
        encoded = base64.b64encode(content).decode()
        if len(encoded) > self._budget:
            self.left_out += 1
            return None
        self._budget -= len(encoded)
        self._images[key] = f"data:image/{'png' if lossless else 'jpeg'};base64,{encoded}"
        return key

    def render(self) -> str:
        """Return the HTML document."""
        links = "".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in self._sections)
        sections = "\n".join(
            f'<section id="{key}" aria-labelledby="{key}h"><h2 id="{key}h">{escape(heading)}</h2>\n{content}</section>'
            for key, heading, content in self._sections
        )
        chips = "".join(
            f'<label class="chip" style="--c:var(--c{index % 8})"><input type="checkbox" checked data-series="{index}">'
            f"<i></i>{escape(name)}</label>"
            for index, name in enumerate(self.series)
        )
        legend = f'<div class="chips" role="group" aria-label="Shown">{chips}</div>' if len(self.series) > 1 else ""
        made = time.strftime("%Y-%m-%d %H:%M")
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="safmn {__version__}">
<title>{escape(self.title)}</title>
<style>
{_assets(_STYLES)}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<div class="head">
<div><h1>{escape(self.title)}</h1><p class="subtitle">{escape(self.subtitle)}</p></div>
<button type="button" id="theme" title="Light, dark, or as the system">Theme: system</button>
</div>
</header>
<nav aria-label="Sections"><div class="links">{links}</div>{legend}</nav>
<main id="main">
<noscript><p class="note">Charts and images need JavaScript, which is in this file.</p></noscript>
{sections}
</main>
<footer>Made by safmn {__version__}, {made}. This file needs no network.</footer>
<script type="application/json" id="images">{to_json(self._images)}</script>
<script type="application/json" id="series">{to_json(self.series)}</script>
<script>
{_assets(_SCRIPTS)}</script>
</body>
</html>
"""


def _jpeg(pixels: Array) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert done
    return encoded.tobytes()


def escape(text: object) -> str:
    """Return a text for HTML, also inside attributes. Half characters of undecodable file names are replaced."""
    return html.escape(str(text).encode("utf-8", "replace").decode())


def to_json(data: Any) -> str:
    """Return data as JSON that may stand in a script element. NaN and infinity become null."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return (
        text.replace("<", "\\u003c").replace("&", "\\u0026").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )


def middle(pixels: Array, side: int = MAX_SIDE) -> Array:
    """Return the middle of an image, at most ``side`` pixels high and wide."""
    top, left = (max(size - side, 0) // 2 for size in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    return value


def _assets(names: Sequence[str]) -> str:
    folder = resources.files(__package__) / "assets"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
