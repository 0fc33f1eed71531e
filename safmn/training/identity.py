"""What decides a run beside its option file: the user's own code. It is hashed, copied, and compared on resume.

The run's folder gets the option file as given (``option_file.yml``), all options with their defaults (``options.yml``,
which can be run again as it is), and the imported files (``code/``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safmn import code_identity
from safmn.imports import Imported, entries_of
from safmn.options import Options, dump
from safmn.system.files import set_aside, write_atomically
from safmn.training.experiment import Experiment
from safmn.weights.origin import CODE

logger = logging.getLogger(__name__)

_KEY = "code of imports"  # beginning of the names of the code's fingerprints
GIVEN, COMPLETE = "option_file.yml", "options.yml"


def code_fingerprints(options: Options) -> dict[str, str]:
    """Return the SHA-256 of each entry of ``imports`` with the files that it imports from beside it."""
    entries = entries_of(options.imports)
    return {f"{_KEY}[{number}]": entry.digest[:16] for number, entry in enumerate(entries) if entry.digest}


def is_compared(fingerprints: Mapping[str, str]) -> bool:
    """Return whether a checkpoint's fingerprints include the code, so that its place may change."""
    return any(key.startswith(_KEY) for key in fingerprints)


def advice_on(changed: Mapping[str, str], options: Options, experiment: Experiment) -> str:
    """Return what to do if the code of ``imports`` is among what has changed since a checkpoint; else nothing.

    Args:
        changed: key of a fingerprint -> description of the change.
    """
    if not is_compared(changed):
        return ""
    code = experiment.root / CODE
    copies = [_copy_of(entry, code) for entry in entries_of(options.imports)]
    if not all(copy.is_file() or copy.suffix != ".py" for copy in copies):
        return ""
    names = ", ".join(map(str, copies))
    return (
        f"\nThe code as it was is in {code}. To continue with it: --force_yml 'imports=[{names}]'. To continue with "
        "the changed code: --allow-changes."
    )


def _copy_of(entry: Imported, code: Path) -> Path:
    """Return the copy of an imported file or package in the folder ``code``; of a module without one, its name."""
    if entry.target.endswith(".py"):
        return code / Path(entry.target).name
    package = code.joinpath(*entry.target.split("."))
    return package if (package / "__init__.py").is_file() else Path(entry.target)


def write_identity(options: Options, experiment: Experiment, given: bytes) -> None:
    """Write the option file, the complete options and the imported files into the run's folder.

    What is there and differs, from before a resume with changes, is renamed and kept.

    Args:
        given: the content of the option file.
    """
    _put(experiment.root / COMPLETE, dump(options).encode())
    _put(experiment.root / GIVEN, given)
    contents = _contents(options)
    code = experiment.root / CODE
    present = {path.relative_to(code).as_posix(): path.read_bytes() for path in code.rglob("*.py")}
    if contents == present:
        return
    if present:
        logger.info("the code of before is kept as %s", set_aside(code))
    for name, content in contents.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(code / name, content)


def _put(path: Path, content: bytes) -> None:
    if path.is_file():
        if path.read_bytes() == content:
            return
        set_aside(path)
    write_atomically(path, content)


def _contents(options: Options) -> dict[str, bytes]:
    """Return the imported files by their path in the folder ``code``.

    An entry with a file of the name, but not the content, of an earlier entry's goes into a folder of its own.
    """
    contents: dict[str, bytes] = {}
    for number, entry in enumerate(entries_of(options.imports)):
        files = code_identity.files_of(entry.target, Path(entry.folder))
        own = {name: path.read_bytes() for name, path in files.items()}
        collides = any(contents.get(name, content) != content for name, content in own.items())
        contents |= {f"{number}/{name}" if collides else name: content for name, content in own.items()}
    return contents
