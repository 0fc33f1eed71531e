"""The networks. Importing this package registers each of them in BasicSR's ``ARCH_REGISTRY`` by class name.

The SAFMN family is here, the networks of others are in :mod:`safmn.archs.peers`.
"""

from __future__ import annotations

from safmn.archs.family import FAMILY as FAMILY
from safmn.archs.light_safmnpp_arch import LightSAFMNPP as LightSAFMNPP
from safmn.archs.peers import PEERS as PEERS
from safmn.archs.safmn_arch import SAFMN as SAFMN
from safmn.archs.safmn_bcie_arch import SAFMN_BCIE as SAFMN_BCIE
from safmn.archs.safmn_ntire23_arch import SAFMN_NTIRE23 as SAFMN_NTIRE23
from safmn.archs.safmnpp_arch import SAFMNPP as SAFMNPP
from safmn.archs.safmnv3_arch import SAFMNv3 as SAFMNv3
