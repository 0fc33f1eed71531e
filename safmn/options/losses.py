"""Read the losses of an option file as one list, from ``train.losses`` and BasicSR's keys (``pixel_opt``, ...)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from safmn import registry
from safmn.errors import OptionError
from safmn.options.problems import KeyPath

Role: TypeAlias = Literal["image", "artefact", "adversarial"]

# Keys of `train` in published files, in the order in which BasicSR adds the losses -> (name in the log, role).
PUBLISHED: dict[str, tuple[str, Role]] = {
    "pixel_opt": ("pix", "image"),
    "fft_opt": ("freq", "image"),
    "perceptual_opt": ("percep", "image"),
    "ldl_opt": ("ldl", "artefact"),
    "artifacts_opt": ("ldl", "artefact"),
    "gan_opt": ("gan", "adversarial"),
}


_RESERVED = ("flat", "style")  # names in the log of losses that are not entries


class EntryKeys(Struct, frozen=True, kw_only=True):
    """Keys of an entry of ``train.losses`` that are not arguments of the loss itself.

    Attributes:
        name: The loss's name in the log, after ``l_``. null: derived from the type; ``L1Loss`` becomes ``l1``.
        role: ``image`` compares the network's output with the GT. ``artefact`` compares the same two images, weighted
            with LDL's map of artefacts (arXiv 2203.09195). ``adversarial`` takes the discriminator's scores. null:
            ``adversarial`` if the loss has an argument ``target_is_real``, otherwise ``image``.
        sharpened: Compare with the sharpened GT. null: follow ``gt_usm``, ``l1_gt_usm`` and ``percep_gt_usm``.
    """

    name: str | None = None
    role: Role | None = None
    sharpened: bool | None = None


class LossEntry(Struct, frozen=True, kw_only=True):
    """One loss of a run.

    Attributes:
        where: its key path in the option file, such as ``("train", "pixel_opt")`` or ``("train", "losses", 0)``.
        name: its name in the log, after the model's prefix; unique in a file.
        role: what it is applied to; see :class:`EntryKeys`.
        sharpened: see :class:`EntryKeys`.
        section: ``type`` and the arguments of the constructor.
    """

    where: KeyPath
    name: str
    role: Role
    sharpened: bool | None
    section: dict[str, Any]


def loss_entries(train: Mapping[str, Any]) -> list[LossEntry]:
    """Return all losses of the section ``train``, those under BasicSR's keys first.

    Args:
        train: the section as plain data. Entries that are not sections or have no type are left out; other checks
            report them.
    """
    entries: list[LossEntry] = []
    for where, given in given_losses(train):
        if isinstance(given, Mapping) and isinstance(given.get("type"), str):
            entries.append(_entry(where, given, {*_RESERVED, *(entry.name for entry in entries)}))
    return entries


def given_losses(train: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the key path and the unchecked value of every loss in the section ``train``."""
    for key in PUBLISHED:
        if train.get(key) is not None:
            yield ("train", key), train[key]
    listed = train.get("losses")
    for index, given in enumerate(listed if isinstance(listed, list) else []):
        yield ("train", "losses", index), given


def is_adversarial(component: Callable[..., Any]) -> bool:
    """Return whether a loss takes a discriminator's scores: its ``forward`` has the argument ``target_is_real``."""
    return "target_is_real" in inspect.signature(getattr(component, "forward", component)).parameters


def _entry(where: KeyPath, given: Mapping[str, Any], taken: set[str]) -> LossEntry:
    if where[1] in PUBLISHED:
        name, role = PUBLISHED[str(where[1])]
        return LossEntry(where=where, name=name, role=role, sharpened=None, section=dict(given))
    own = {key: given.get(key) for key in EntryKeys.__struct_fields__}
    return LossEntry(
        where=where,
        name=_free(own["name"] or _short(given["type"]), taken),
        role=own["role"] or _role(given["type"]),
        sharpened=own["sharpened"],
        section={key: value for key, value in given.items() if key not in own},
    )


def _role(kind: str) -> Role:
    try:
        return "adversarial" if is_adversarial(registry.find(registry.LOSS_REGISTRY, kind)) else "image"
    except OptionError:  # reported by the check of the components
        return "image"


def _short(kind: str) -> str:
    """Return the default name: ``l1`` for ``L1Loss``, ``weighted_tv`` for ``WeightedTVLoss``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.removesuffix("Loss") or kind)
    return words.lower()


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
