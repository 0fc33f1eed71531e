"""Read and write weight files, recognise their network, and load weights into networks.

- :mod:`safmn.weights.files`: convert ``.pth`` and ``.safetensors`` files to state dicts and back.
- :mod:`safmn.weights.recognise`: find the network and its arguments from names and shapes.
- :mod:`safmn.weights.networks`: load weights into a network, or build a network from weights.
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
