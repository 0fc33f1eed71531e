"""What built a network: noted in its weight files, so that a file of a user's own network can be used by itself.

A training run writes the note into every weight file: in a ``.pth`` as a text beside ``params``, which other programs
ignore, in a ``.safetensors`` in the header. It has the network's type and arguments, the scale, the range of values,
and the names and hashes of the imported files.

A weight file is data, so it cannot make SAFMN run code that the user does not know. Code that it names is imported only
if the user gives it (``--imports``), or if it has exactly the content of code that the user has named before
(:mod:`safmn.code_identity`), on this machine, in an option file or with ``--imports``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from torch import Tensor, nn

from safmn import code_identity
from safmn.errors import UserError, WeightsError
from safmn.imports import allow, entries_of, import_named, imported, missing_file
from safmn.own_code import described
from safmn.registry import ARCH_REGISTRY, build, find, import_basicsr, names
from safmn.weights.bounds import NetworkTooLarge, bounded_building

logger = logging.getLogger(__name__)

KEY = "safmn"
"""Key of the note in the metadata of a weight file."""
CODE = "code"
"""Folder of a training run with copies of the imported files."""


class Code(Struct, frozen=True, kw_only=True):
    """An entry of ``imports``.

    Attributes:
        name: the entry as written in the option file.
        files: the source files: path relative to the first one's folder -> SHA-256.
    """

    name: str
    files: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """The SHA-256 of all files."""
        return code_identity.combined(self.files)


class Origin(Struct, frozen=True, kw_only=True):
    """What built a network.

    Attributes:
        type: the network's registered name.
        arguments: the arguments of its constructor.
        scale: scale of super-resolution; 0 if unknown, as for a discriminator.
        imports: the user's code that registers the network.
        mean, std: if not null, the network takes and gives (image - mean) / std, per channel, for images in [0, 1].
    """

    type: str
    arguments: dict[str, Any] = {}
    scale: int = 0
    imports: list[Code] = []
    mean: list[float] | None = None
    std: list[float] | None = None

    @property
    def section(self) -> dict[str, Any]:
        """The network's section in an option file."""
        return {"type": self.type, **self.arguments}

    def metadata(self) -> dict[str, str]:
        """Return the note for a weight file."""
        return {KEY: msgspec.json.encode(self).decode()}


def origin_of(
    section: Mapping[str, Any],
    *,
    scale: int,
    imports: Sequence[str] = (),
    train_set: Mapping[str, Any] | None = None,
) -> Origin:
    """Return the origin of a network that an option file describes.

    Args:
        section: ``network_g`` or ``network_d``.
        scale: scale of the option file.
        imports: ``imports`` of the option file; noted if the network is not one of SAFMN's or BasicSR's.
        train_set: the section of the training set, whose ``mean`` and ``std`` the network's images have.
    """
    given = train_set or {}
    normal = {key: [float(value) for value in given[key]] for key in ("mean", "std") if given.get(key)}
    return Origin(
        type=section["type"],
        arguments={key: value for key, value in section.items() if key != "type"},
        scale=scale,
        imports=[
            Code(name=entry.given, files=dict(entry.files))
            for entry in entries_of(imports if _is_own(section["type"]) else ())
        ],
        **normal,
    )


def read_origin(metadata: Mapping[str, str], path: Path) -> Origin | None:
    """Return the origin in a weight file's metadata, or None; one that cannot be read is ignored with a warning."""
    if KEY not in metadata:
        return None
    try:
        return msgspec.json.decode(metadata[KEY], type=Origin)
    except msgspec.MsgspecError as error:
        logger.warning("%s: the note about the network's origin cannot be read (%s); it is ignored", path, error)
        return None


def import_code(names: Sequence[str]) -> None:
    """Import the files and modules that the user named with ``--imports``.

    Raises:
        UserError: one cannot be imported; the message has file and line.
    """
    if names:
        import_basicsr()
    for name in names:
        if missing := missing_file(name):
            raise UserError(f"--imports {name}: {missing}")
        try:
            allow(import_named(name))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise UserError(f"--imports {name}: cannot be imported: {described(error)}") from error


def network_of(origin: Origin, state_dict: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build the network of an origin. The weights are not loaded.

    Args:
        origin: read from a weight file, so not trusted.
        state_dict: the file's weights, which limit the size of the network.
        path: the weight file.

    Raises:
        WeightsError: code that registers the network is missing, changed or not known; or the constructor fails.
    """
    if not _is_own(origin.type):  # with `imports` in the note, a network of SAFMN with this name is another one
        for code in origin.imports:
            _import_known(code, origin, path)
    if origin.type not in names(ARCH_REGISTRY):
        listed = ", ".join(code.name for code in origin.imports)
        raise WeightsError(
            f"{path}: these weights are of the network {origin.type}, which "
            + (f"{listed} did not register" if listed else "SAFMN and BasicSR do not have")
            + ". Name the file that registers it: --imports FILE.py"
        )
    _check_arguments(origin, path)
    try:
        with bounded_building(state_dict):
            network: nn.Module = build(ARCH_REGISTRY, origin.section)
    except (NetworkTooLarge, UserError) as error:
        raise WeightsError(f"{path}: {error}") from error
    return network


def _is_own(name: str) -> bool:
    """Return whether the user's code has registered a network of this name: neither SAFMN's nor BasicSR's."""
    return name in names(ARCH_REGISTRY) and not find(ARCH_REGISTRY, name).__module__.startswith(("safmn.", "basicsr."))


def _check_arguments(origin: Origin, path: Path) -> None:
    """Refuse arguments that name files: a constructor of another package might load them, with any content."""
    for key, value in origin.arguments.items():
        if found := next((text for text in _texts(value) if _names_a_file(text)), None):
            raise WeightsError(
                f"{path}: the network's argument {key} names a file, {found!r}, which a weight file may not: give the "
                "option file with -opt"
            )


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in an argument."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _names_a_file(text: str) -> bool:
    return "/" in text or "\\" in text or ("\0" not in text and os.path.exists(text))


def _import_known(code: Code, origin: Origin, path: Path) -> None:
    """Import code that a weight file names, if the user has run exactly this code before.

    Raises:
        WeightsError: the code is missing, changed or not known; the message says what to do.
    """
    needs = f"{path}: these weights are of the network {origin.type}, which {code.name} registers"
    if any(entry.digest == code.digest for entry in imported()):
        return
    places = _places(code, path)
    found = {place: files for place in places if "\0" not in place and (files := code_identity.files_of(place))}
    same = [place for place, files in found.items() if code_identity.digest_of(files) == code.digest]
    if not found:
        raise WeightsError(
            f"{needs}. It was not found: there is no {' and no '.join(places)}. Say where it is: --imports "
            f"{Path(code.name).name if code.name.endswith('.py') else code.name}"
        )
    if not same:
        place = next(iter(found))
        raise WeightsError(
            f"{needs}. {place} has changed since they were trained. To use it all the same: --imports {place}"
        )
    if not code_identity.is_known(code.digest):
        raise WeightsError(
            f"{needs}. {same[0]} is that file, but a weight file may not start code that you have not used on this "
            f"machine. Read it; if you trust it: --imports {same[0]}"
        )
    try:
        import_basicsr()
        entry = import_named(same[0], given=code.name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise WeightsError(f"{needs}. {same[0]} cannot be imported: {described(error)}") from error
    logger.info("%s: imported %s, which the weights name and you have used before", path, entry.origin)


def _places(code: Code, path: Path) -> list[str]:
    """Return where the code may be: as the option file named it, and the copy in the run's folder."""
    places = [code.name]
    if code.files and path.resolve().parent.name == "models":
        first = next(iter(code.files))  # such as mine.py or parts/__init__.py
        copy = path.resolve().parent.parent / CODE / first
        if code.name.endswith(".py") or copy.name == "__init__.py":
            places.append(os.path.relpath(copy) if copy.is_relative_to(Path.cwd()) else str(copy))
    return places
