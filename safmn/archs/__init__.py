"""The SAFMN family: importing this package registers each network in BasicSR's ``ARCH_REGISTRY``, by its plain name."""

from __future__ import annotations

from safmn.archs.light_safmnpp_arch import LightSAFMNPP
from safmn.archs.safmn_arch import SAFMN
from safmn.archs.safmn_bcie_arch import SAFMN_BCIE
from safmn.archs.safmn_ntire23_arch import SAFMN_NTIRE23
from safmn.archs.safmnpp_arch import SAFMNPP
from safmn.archs.safmnv3_arch import SAFMNv3

FAMILY = (SAFMN, SAFMN_BCIE, SAFMN_NTIRE23, SAFMNPP, LightSAFMNPP, SAFMNv3)

__all__ = ["FAMILY", "SAFMN", "SAFMNPP", "SAFMN_BCIE", "SAFMN_NTIRE23", "LightSAFMNPP", "SAFMNv3"]
