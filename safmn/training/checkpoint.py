"""Checkpoints: written atomically, verified when loaded, and pruned by a fixed rule.

A checkpoint is a directory ``training_states/<iteration>/`` with one safetensors file for each network, ``state.json``,
and ``manifest.json``. The manifest has the size and SHA-256 of each file, and the SHA-256 of its own body. The
directory is written under a temporary name, flushed, and renamed into place, so a kill at any moment leaves the earlier
checkpoints unchanged.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from safmn.errors import CheckpointError, first_line
from safmn.system.files import TEMPORARY, flush_directory, flush_file, replace
from safmn.training import state_format

logger = logging.getLogger(__name__)

_FORMAT = 1
_REPLACED = ".replaced-"  # prefix of an older version of a checkpoint while the newer one is moved into its place
_MANIFEST = "manifest.json"
_STATE = "state.json"
_LONGEST_MANIFEST = 2**24  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory: state of the networks by name, and the run's progress as plain data."""

    path: Path
    iteration: int
    networks: dict[str, Any]
    progress: dict[str, Any]
    options: dict[str, Any]


class Checkpointer:
    """Writes, finds, verifies and prunes the checkpoints of one experiment.

    Args:
        folder: ``experiments/<name>/training_states``.
        keep_last: number of scheduled checkpoints to keep; 0 keeps all.
        keep_every: checkpoints at multiples of this iteration are never deleted.
    """

    def __init__(self, folder: Path, *, keep_last: int = 3, keep_every: int | None = None) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_every = keep_every

    def iterations(self) -> list[int]:
        """Return the iterations of the existing checkpoints, ascending, without verifying them."""
        if not self.folder.is_dir():
            return []
        named = (entry.name for entry in self.folder.iterdir() if entry.is_dir() and entry.name.isdecimal())
        return sorted(int(name) for name in named if name == f"{int(name):09d}")

    def path(self, iteration: int) -> Path:
        """Return the directory of one checkpoint."""
        return self.folder / f"{iteration:09d}"

    def save(
        self,
        iteration: int,
        networks: Mapping[str, Any],
        progress: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Write the checkpoint of ``iteration``, and replace an existing one of the same iteration.

        Raises:
            CheckpointError: it could not be written, for example on a full disk; existing checkpoints are unchanged.
        """
        temporary = self.folder / f"{TEMPORARY}{iteration:09d}-{os.getpid()}"
        try:
            if temporary.exists():  # left by a killed process with the same process ID, which is common in containers
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            _write(temporary, iteration, networks, {"progress": dict(progress), "options": dict(options)})
            self._move_into_place(temporary, self.path(iteration))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            what = f"the checkpoint of iteration {iteration} to {self.folder}"
            raise self.cannot_write(what, iteration, error) from error

    def _move_into_place(self, temporary: Path, final: Path) -> None:
        replaced = final.with_name(_REPLACED + final.name)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            replace(final, replaced)
        try:
            replace(temporary, final)
        except OSError:
            if replaced.exists():
                replace(replaced, final)
            raise
        flush_directory(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def cannot_write(self, what: str, iteration: int, error: Exception) -> CheckpointError:
        """Return the error for a file or checkpoint that could not be written.

        Its message gives the free space, the newest earlier checkpoint, and how to continue.

        Args:
            what: description of what was to be written.
            iteration: the iteration that was to be saved.
        """
        disk = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(disk).free / 2**20
        kept = [number for number in self.iterations() if number < iteration]
        before = f"The checkpoint of iteration {kept[-1]} is intact" if kept else "There is no earlier checkpoint"
        return CheckpointError(
            f"cannot write {what}: {error} ({free:.0f} MiB free). {before}. Free some space and start again with "
            "--auto_resume."
        )

    def tidy(self) -> None:
        """Clean up after killed writers: remove unfinished checkpoints, restore one whose replacement is missing."""
        if not self.folder.is_dir():
            return
        for entry in list(self.folder.iterdir()):
            if entry.name.startswith(TEMPORARY):
                shutil.rmtree(entry)
            elif entry.name.startswith(_REPLACED):
                final = entry.with_name(entry.name.removeprefix(_REPLACED))
                shutil.rmtree(entry) if final.exists() else replace(entry, final)

    def load_latest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint and log each damaged one; return None if there are no checkpoints.

        Raises:
            CheckpointError: every checkpoint is damaged.
        """
        iterations = self.iterations()
        for iteration in reversed(iterations):
            try:
                return load(self.path(iteration))
            except CheckpointError as error:
                logger.error("%s; trying the previous one", error)
        if iterations:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged: restore one from a backup, or move the folder away to "
                "start at iteration 0"
            )
        return None

    def set_aside_after(self, iteration: int, reason: str, *, foreign: bool = False) -> None:
        """Rename the checkpoints later than ``iteration``, where the run continues, to ``<reason>-<iteration>``.

        Without this, the next resume would choose them, since they are newer than those that the run writes next.

        Args:
            foreign: the run continues from a checkpoint outside this folder, so all checkpoints here are renamed.
        """
        for later in self.iterations():
            if foreign or later > iteration:
                aside = self._unused(f"{reason}-{later:09d}")
                replace(self.path(later), aside)
                logger.warning(
                    "the run continues from iteration %d: %s is kept as %s", iteration, self.path(later), aside
                )

    def _unused(self, name: str) -> Path:
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(self.folder / each for each in names if not (self.folder / each).exists())

    def prune(self, current: int, *, scheduled: Callable[[int], bool], best: int | None) -> None:
        """Delete the checkpoints up to iteration ``current`` that need not be kept.

        Kept are ``current``, the last ``keep_last`` scheduled ones, multiples of ``keep_every``, and ``best``. So a
        checkpoint that was written because of a signal is deleted once there is a newer one.

        Args:
            scheduled: whether an iteration is one at which checkpoints are written.
            best: iteration of the best weights, if they are kept.
        """
        iterations = [iteration for iteration in self.iterations() if iteration <= current]
        on_schedule = [iteration for iteration in iterations if scheduled(iteration)]
        kept = {current, *on_schedule[-self.keep_last :]} | ({best} if best is not None else set())
        if self.keep_every:
            kept |= {iteration for iteration in iterations if iteration % self.keep_every == 0}
        for iteration in iterations:
            if iteration not in kept:
                try:
                    shutil.rmtree(self.path(iteration))
                except OSError as error:  # on Windows, another program may have a file of it open; the run goes on
                    logger.warning("%s is not needed but cannot be deleted: %s", self.path(iteration), error)


def _write(folder: Path, iteration: int, networks: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint directory: tensors and state first, then, once these are flushed, the manifest.

    Args:
        rest: further entries of ``state.json``.
    """
    documents = {}
    for name, state in networks.items():
        documents[name], tensors = state_format.split(state)
        content = safetensors.torch.save(_unshared(tensors))  # save_file writes files that only their owner may read
        (folder / f"{name}.safetensors").write_bytes(content)
    document = {"iteration": iteration, "networks": documents, **rest}
    (folder / _STATE).write_bytes(json.dumps(document, indent=1).encode())
    files = sorted(folder.iterdir())
    for file in files:
        flush_file(file)
    body = json.dumps(
        {
            "format": _FORMAT,
            "iteration": iteration,
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": _digest(file.read_bytes())} for file in files
            },
        }
    )
    manifest = folder / _MANIFEST
    manifest.write_bytes(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n".encode())
    flush_file(manifest)
    flush_directory(folder)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with copies of those that share memory with an earlier one, which safetensors refuses."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _File(msgspec.Struct):
    """A file of a checkpoint, as its manifest describes it."""

    bytes: int
    sha256: str


class _Manifest(msgspec.Struct):
    """The manifest of a checkpoint: its format, iteration and files."""

    format: int
    iteration: int
    files: dict[str, _File]


def _read_manifest(folder: Path) -> _Manifest:
    try:
        with (folder / _MANIFEST).open("rb") as file:
            text = file.read(_LONGEST_MANIFEST).decode()
        body, digest, rest = text.split("\n")
    except (OSError, ValueError) as error:
        if not folder.name.isdigit():
            raise CheckpointError(
                f"{folder} is not a checkpoint: name one of the folders in training_states, such as 000005000"
            ) from error
        raise CheckpointError(f"checkpoint {folder} is damaged: its manifest is missing or incomplete") from error
    if rest or digest != _digest(body.encode()):
        raise CheckpointError(f"checkpoint {folder} is damaged: its manifest does not match its own checksum")
    try:
        found = msgspec.json.decode(body, type=_Manifest)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: its manifest is invalid ({error})") from error
    if found.format != _FORMAT:
        raise CheckpointError(f"checkpoint {folder} has format {found.format}; this version reads {_FORMAT}")
    if f"{found.iteration:09d}" != folder.name:
        raise CheckpointError(f"checkpoint {folder} was renamed: it is of iteration {found.iteration}")
    return found


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint directory.

    Raises:
        CheckpointError: a file, named in the message, is missing, incomplete or altered.
    """
    manifest = _read_manifest(folder)
    contents = {name: _read_file(folder, name, facts) for name, facts in manifest.files.items()}
    try:
        document = json.loads(contents[_STATE])
        networks = {
            name: state_format.join(part, safetensors.torch.load(contents[f"{name}.safetensors"]))
            for name, part in document["networks"].items()
        }
        return Checkpoint(folder, document["iteration"], networks, document["progress"], document["options"])
    except Exception as error:  # the checksums are right, so another program wrote it, with any content
        raise CheckpointError(
            f"checkpoint {folder} was not written by safmn train ({type(error).__name__}: {first_line(error):.200})"
        ) from error


def peek(folder: Path) -> dict[str, Any] | None:
    """Return ``progress`` and ``options`` of a checkpoint without verifying it; None if they cannot be read."""
    try:
        document = json.loads((folder / _STATE).read_bytes())
        return {key: dict(document[key]) for key in ("progress", "options")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_file(folder: Path, name: str, facts: _File) -> bytes:
    """Return the content of a file of the checkpoint after checking its name, size and checksum."""
    path = folder / name
    if Path(name).name != name:
        raise CheckpointError(f"checkpoint {folder} is damaged: {name!r:.80} is not a file in this folder")
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size == facts.bytes:
            content = path.read_bytes()
            if _digest(content) == facts.sha256:
                return content
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {name} cannot be read ({error.strerror})") from error
    raise CheckpointError(f"checkpoint {folder} is damaged: {name} does not match its checksum")
