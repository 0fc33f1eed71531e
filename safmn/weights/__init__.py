"""Read and write weight files, recognise their network, and load weights into networks.

- :mod:`safmn.weights.files`: convert ``.pth`` and ``.safetensors`` files to state dicts and back.
- :mod:`safmn.weights.recognise`: find the network and its arguments from names and shapes.
- :mod:`safmn.weights.origin`: the note of what built a network, in its weight files.
- :mod:`safmn.weights.networks`: load weights into a network, or build a network from weights.
"""

from __future__ import annotations

from safmn.weights.files import StateDict, has_average, load_plain, load_state_dict, locate, metadata_of, save_weights
from safmn.weights.networks import (
    ForeignNetwork,
    OtherScaleError,
    WrappedNetwork,
    kind_of,
    load_into,
    load_network,
    with_interface,
)
from safmn.weights.origin import Origin, import_code, origin_of, read_origin
from safmn.weights.recognise import Recognised, check_fits, recognise

__all__ = [
    "ForeignNetwork",
    "Origin",
    "OtherScaleError",
    "Recognised",
    "StateDict",
    "WrappedNetwork",
    "check_fits",
    "has_average",
    "import_code",
    "kind_of",
    "load_into",
    "load_network",
    "load_plain",
    "load_state_dict",
    "locate",
    "metadata_of",
    "origin_of",
    "read_origin",
    "recognise",
    "save_weights",
    "with_interface",
]
