"""Learning rates and freezing of weights by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from torch import nn

from safmn.errors import OptionError
from safmn.value_types import NotNegative, NotNegativeFloat


class NamedWeights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of ``train.weights_by_name``.

    Attributes:
        names: Patterns such as ``feats.0.*`` for the names of the network's weights.
        lr_factor: Factor of the learning rate; 0: these weights never change.
        frozen_until: The weights do not change up to this iteration.
    """

    names: Annotated[list[str], Meta(min_length=1)]
    lr_factor: NotNegativeFloat = 1.0
    frozen_until: NotNegative = 0

    def matches(self, name: str) -> bool:
        """Return whether a weight of this name is meant."""
        return any(fnmatchcase(name, pattern) for pattern in self.names)


class Groups:
    """The weights of a network, grouped by the entries of ``train.weights_by_name``; the first match counts.

    Args:
        network: the network.
        sections: the entries, as plain data.

    Raises:
        OptionError: an entry is wrong, or matches no weight that an earlier entry left.
    """

    def __init__(self, network: nn.Module, sections: Sequence[Mapping[str, Any]]) -> None:
        self.entries = [_entry(section, index) for index, section in enumerate(sections)]
        self._of_entry: list[list[nn.Parameter]] = [[] for _ in self.entries]
        self._others: list[nn.Parameter] = []
        names = []
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            names.append(name)
            index = next((i for i, entry in enumerate(self.entries) if entry.matches(name)), None)
            (self._others if index is None else self._of_entry[index]).append(parameter)
        for index, (entry, found) in enumerate(zip(self.entries, self._of_entry, strict=True)):
            if not found:
                listed = ", ".join(names[:3])
                raise OptionError(
                    f"train.weights_by_name[{index}]: {', '.join(entry.names)} matches no weight that an earlier entry "
                    f"left; the network's weights are {listed}, ... ({len(names)})"
                )

    def for_optimizer(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameter groups, those without an entry first, with their learning rates."""
        groups = [{"params": self._others}] if self._others else []
        for entry, found in zip(self.entries, self._of_entry, strict=True):
            groups.append({"params": found, "lr": lr * (entry.lr_factor or 1.0)})  # type: ignore[dict-item]
        return groups

    def frozen(self, iteration: int) -> Iterable[nn.Parameter]:
        """Yield the weights that must not change in this iteration, counted from 1."""
        for entry, found in zip(self.entries, self._of_entry, strict=True):
            if entry.lr_factor == 0 or iteration <= entry.frozen_until:
                yield from found


def _entry(section: Mapping[str, Any], index: int) -> NamedWeights:
    try:
        return msgspec.convert(section, NamedWeights)
    except msgspec.ValidationError as error:
        raise OptionError(f"train.weights_by_name[{index}]: {error}") from error
