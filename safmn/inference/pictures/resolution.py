"""The resolution of an image in pixels per inch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resolution:
    """Pixels per inch along x and y; without ``absolute``, only their ratio has a meaning (the shape of a pixel)."""

    x: float
    y: float
    absolute: bool = True

    def times(self, x: float, y: float) -> Resolution:
        """Return the resolution after multiplying the pixels by ``x`` and ``y`` while the printed size stays."""
        return Resolution(self.x * x, self.y * y, True) if self.absolute else self

    @property
    def says_something(self) -> bool:
        """Whether it says more than that pixels are square."""
        return self.absolute or abs(self.x / self.y - 1) > 1e-6
