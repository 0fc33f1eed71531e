"""Learning rates and freezing of weights by their names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from torch import nn

from safmn.errors import OptionError
from safmn.value_types import NotNegative, NotNegativeFloat

_WITHOUT_CHECKPOINTS = ("torch.", "safmn.", "builtins", "typing")  # packages whose layers recompute nothing


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
        self._frozen: list[bool] = []  # by entry, in the current iteration
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

    def begin(self, iteration: int, *, without_gradients: bool) -> None:
        """Freeze and thaw weights for an iteration, counted from 1.

        Args:
            without_gradients: let the backward pass compute no gradients of frozen weights, which saves time. It makes
                no difference to the others.
        """
        frozen = [entry.lr_factor == 0 or iteration <= entry.frozen_until for entry in self.entries]
        if frozen == self._frozen:
            return
        self._frozen = frozen
        all_are = all(frozen) and not self._others  # then there would be nothing to compute a gradient of
        if without_gradients and not all_are:
            for is_frozen, found in zip(frozen, self._of_entry, strict=True):
                for parameter in found:
                    parameter.requires_grad_(not is_frozen)

    def frozen(self) -> Iterator[nn.Parameter]:
        """Yield the weights that must not change in the iteration that :meth:`begin` began."""
        for is_frozen, found in zip(self._frozen, self._of_entry, strict=True):
            if is_frozen:
                yield from found


def can_stop(network: nn.Module) -> bool:
    """Return whether the backward pass may end above frozen weights. It may not in two cases.

    ``torch.utils.checkpoint``, which recomputes activations, gives no gradients at all in its older form if its input
    needs none. The network's source code is searched for this word. GroupNorm in the format channels_last crashes
    on a CPU if only its weights need gradients (torch 2.13).
    """
    if any(isinstance(module, nn.GroupNorm) for module in network.modules()):
        return False
    kinds = {base for module in network.modules() for base in type(module).__mro__}
    names = {kind.__module__ for kind in kinds if not kind.__module__.startswith(_WITHOUT_CHECKPOINTS)}
    try:
        return not any("checkpoint" in inspect.getsource(sys.modules[name]) for name in names)
    except (OSError, TypeError, KeyError):  # there is no source code
        return False


def _entry(section: Mapping[str, Any], index: int) -> NamedWeights:
    try:
        return msgspec.convert(section, NamedWeights)
    except msgspec.ValidationError as error:
        raise OptionError(f"train.weights_by_name[{index}]: {error}") from error
