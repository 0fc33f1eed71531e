"""The networks of others that the field compares. Importing this package registers them by class name.

One file each. :mod:`safmn.archs.peers.declaration` says what a file declares, :mod:`safmn.archs.peers.form` how every
command follows it.
"""

from __future__ import annotations

from safmn.archs.peers import basicsr_networks as basicsr_networks
from safmn.archs.peers.bsrn import BSRN as BSRN
from safmn.archs.peers.carn import CARN as CARN
from safmn.archs.peers.carn_m import CARN_M as CARN_M
from safmn.archs.peers.cfsr import CFSR as CFSR
from safmn.archs.peers.declaration import PEERS as PEERS
from safmn.archs.peers.declaration import Form as Form
from safmn.archs.peers.declaration import Peer as Peer
from safmn.archs.peers.declaration import form_of as form_of
from safmn.archs.peers.declaration import peer_of as peer_of
from safmn.archs.peers.ecbsr import ECBSR_PLAIN as ECBSR_PLAIN
from safmn.archs.peers.ecbsr import ECBSR_Y as ECBSR_Y
from safmn.archs.peers.espcn import ESPCN as ESPCN
from safmn.archs.peers.form import InForm as InForm
from safmn.archs.peers.form import bare as bare
from safmn.archs.peers.form import folded as folded
from safmn.archs.peers.form import in_form as in_form
from safmn.archs.peers.fsrcnn import FSRCNN as FSRCNN
from safmn.archs.peers.han import HAN as HAN
from safmn.archs.peers.hit_sir import HiT_SIR as HiT_SIR
from safmn.archs.peers.imdn import IMDN as IMDN
from safmn.archs.peers.lapar import LAPAR as LAPAR
from safmn.archs.peers.lapsrn import LapSRN as LapSRN
from safmn.archs.peers.omnisr import OmniSR as OmniSR
from safmn.archs.peers.pan import PAN as PAN
from safmn.archs.peers.plainusr import PlainUSR as PlainUSR
from safmn.archs.peers.plainusr import PlainUSR_deploy as PlainUSR_deploy
from safmn.archs.peers.rfdn import RFDN as RFDN
from safmn.archs.peers.rlfn import RLFN as RLFN
from safmn.archs.peers.rlfn import RLFN_NTIRE as RLFN_NTIRE
from safmn.archs.peers.san import SAN as SAN
from safmn.archs.peers.seemore import SeemoRe as SeemoRe
from safmn.archs.peers.shufflemixer import ShuffleMixer as ShuffleMixer
from safmn.archs.peers.smfanet import SMFANet as SMFANet
from safmn.archs.peers.smsr import SMSR as SMSR
from safmn.archs.peers.span import SPAN as SPAN
from safmn.archs.peers.span import SPAN_deploy as SPAN_deploy
from safmn.archs.peers.srcnn import SRCNN as SRCNN
from safmn.archs.peers.vdsr import VDSR as VDSR
