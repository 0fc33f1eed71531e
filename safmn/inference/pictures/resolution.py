"""How many pixels of an image make an inch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resolution:
    """Pixels per inch; or, where ``absolute`` is False, only the shape of a pixel (x to y)."""

    x: float
    y: float
    absolute: bool = True

    def times(self, x: float, y: float) -> Resolution:
        """That of an image with so many times the pixels on the same paper: its printed size stays."""
        return Resolution(self.x * x, self.y * y, True) if self.absolute else self

    @property
    def says_something(self) -> bool:
        """Whether it states more than that pixels are square."""
        return self.absolute or abs(self.x / self.y - 1) > 1e-6
