"""The SAFMN family: importing this package registers each network in BasicSR's ``ARCH_REGISTRY``, by its plain name."""

from __future__ import annotations

from safmn.archs.safmn_arch import SAFMN

__all__ = ["SAFMN"]
