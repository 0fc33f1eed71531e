"""Download and make data sets: ``safmn prepare <verb>`` and the functions behind it."""

from __future__ import annotations

from safmn.prepare.hints import hint

__all__ = ["hint"]
