"""Weight files: reading and writing them, telling whose they are, and putting them into networks.

- :mod:`safmn.weights.files`: ``.pth`` and ``.safetensors`` to state dicts and back.
- :mod:`safmn.weights.recognise`: the network and its arguments from names and shapes alone.
- :mod:`safmn.weights.networks`: weights into a network, and a network from weights.
"""

from __future__ import annotations

from safmn.weights.files import StateDict, has_average, load_plain, load_state_dict, locate, save_weights
from safmn.weights.networks import ForeignNetwork, load_into, load_network
from safmn.weights.recognise import Recognised, check_fits, recognise

__all__ = [
    "ForeignNetwork",
    "Recognised",
    "StateDict",
    "check_fits",
    "has_average",
    "load_into",
    "load_network",
    "load_plain",
    "load_state_dict",
    "locate",
    "recognise",
    "save_weights",
]
