"""The folder ``experiments/<name>/``, with BasicSR's layout: its lock, its log and its record of losses."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safmn import __version__
from safmn.errors import UserError
from safmn.imports import imported
from safmn.options import Options
from safmn.system import console
from safmn.system.files import TEMPORARY, set_aside, write_atomically
from safmn.system.locks import ProcessLock

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent


class Experiment:
    """The paths of one experiment, its lock and its record of losses.

    Attributes:
        models: folder of the weights for use elsewhere, such as ``net_g_<iteration>.pth`` and ``net_g_latest.pth``.
        training_states: folder of the checkpoints to resume from.
        record: ``record.jsonl``, with every logged loss and validation. It has no clock times, so a run that was killed
            and resumed writes the same record as an uninterrupted one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "models"
        self.training_states = root / "training_states"
        self.visualization = root / "visualization"
        self.record = root / "record.jsonl"
        self._lock = ProcessLock(root.with_name(f".{root.name}.lock"))  # beside the folder, which archive() renames

    @classmethod
    def of(cls, options: Options) -> Experiment:
        """Return the experiment of an option file."""
        return cls(Path(options.path.experiments_root or "experiments") / options.name)

    def lock(self) -> None:
        """Lock the folder, so that no other run writes here. The lock ends with the process, however that ends.

        Raises:
            UserError: another run has the lock; the message names its process.
        """
        if not self._lock.take():
            raise UserError(
                f"{self.root} is in use by {self._lock.owner}: wait for it, stop it, or give this run another name"
            )
        self.root.mkdir(parents=True, exist_ok=True)

    def in_use_by(self) -> str | None:
        """Return the process that has locked the folder, such as ``process 123 on myhost``; None if none has."""
        if not self.root.exists():
            return None
        if not self._lock.take():
            return self._lock.owner
        self._lock.release()
        return None

    def unlock(self) -> None:
        """Release the lock."""
        self._lock.release()

    def tidy(self) -> None:
        """Remove the unfinished files of killed runs. Call it only with the lock."""
        for folder in (self.root, self.models):
            for left_over in folder.glob(f"{TEMPORARY}*"):
                left_over.unlink()

    def archive(self) -> None:
        """Rename the folder of an older run of the same name, as BasicSR does, instead of overwriting it.

        Call it only with the lock.
        """
        if self.training_states.is_dir() or self.models.is_dir():
            aside = set_aside(self.root)
            self.root.mkdir()
            logger.info(
                "an older run of this name is kept as %s; to continue that one, rename it back to %s and start with "
                "--auto_resume",
                aside,
                self.root,
            )

    def log_of_failed_start(self, name: str) -> Path:
        """Return the log file of a run that fails before it starts: not in the folder of an older run of this name."""
        if self.training_states.is_dir() or self.models.is_dir():
            return self.root.with_name(f"{self.root.name}_failed_start.log")
        return self.root / f"train_{name}.log"

    def has_checkpoints(self) -> bool:
        """Return whether there is a checkpoint, intact or damaged, or a ``.state`` file of BasicSR."""
        folder = self.training_states
        return folder.is_dir() and any(
            entry.name.isdigit() or "replaced" in entry.name or entry.suffix == ".state" for entry in folder.iterdir()
        )

    def append_record(self, entry: Mapping[str, Any]) -> None:
        """Add one line to the record."""
        try:
            with self.record.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.record}: {error.strerror}. Free some space and start again with --auto_resume."
            ) from error

    def rewind_record(self, iteration: int, validated: int) -> None:
        """Drop the lines that are later than the checkpoint that the run resumes from, and damaged lines.

        Args:
            iteration: iteration of the checkpoint; losses of later iterations are dropped.
            validated: newest iteration with a complete validation; later validations are dropped.
        """
        if not self.record.exists():
            return
        kept = []
        for number, line in enumerate(self.record.read_bytes().splitlines(), 1):
            try:
                entry = json.loads(line)
                passed = entry["iter"] <= (validated if "set" in entry else iteration)
            except (ValueError, TypeError, KeyError):  # the last line may be incomplete after a kill
                logger.warning("%s: line %d is damaged and was removed", self.record, number)
                continue
            if passed:
                kept.append(line + b"\n")
        write_atomically(self.record, b"".join(kept))


def git_commit(folder: Path = _PACKAGE) -> str:
    """Return the commit of the checkout that contains a folder, or "unknown" outside of a checkout.

    ``+changes`` is appended if tracked files differ from the commit. The default is the checkout of this package.
    """
    try:
        changes = "+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
        return _git(folder, "rev-parse", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", folder, *arguments], capture_output=True, encoding="utf-8", errors="replace", check=True
    ).stdout.strip()


def own_commits() -> dict[str, str]:
    """Return the commits of the user's repositories: of the working directory and of the imported files."""
    folders = [Path.cwd(), *(Path(entry.origin).parent for entry in imported() if Path(entry.origin).is_absolute())]
    roots: dict[str, Path] = {}
    for folder in [_PACKAGE, *folders]:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            roots.setdefault(_git(folder, "rev-parse", "--show-toplevel"), folder)
    own = roots.items() if git_commit() == "unknown" else list(roots.items())[1:]
    return {f"git commit of {root}": git_commit(folder) for root, folder in own}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """Return versions, commit, machine and command line, for logs and results."""
    import cv2

    return {
        "safmn": __version__,
        "git commit": git_commit(),
        **own_commits(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "basicsr": _version("basicsr"),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "command": " ".join(sys.argv),
    }


def start_logging(log_file: Path | None, *, is_main: bool, console: logging.Handler | None = None) -> None:
    """Log to the console, above progress bars, and to ``log_file`` if there is one; other ranks log warnings only.

    Args:
        console: takes the place of the console.
    """
    root = logging.getLogger("safmn")
    root.setLevel(logging.INFO if is_main else logging.WARNING)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    _add_handler(console or _BarFriendlyHandler())
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        _add_handler(logging.FileHandler(log_file, encoding="utf-8"))


def _add_handler(handler: logging.Handler) -> None:
    handler.setFormatter(console.Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("safmn").addHandler(handler)


class HeldLog:
    """Holds log records in memory until the folder of the log file exists."""

    def __init__(self) -> None:
        self._memory = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
        logging.getLogger("safmn").addHandler(self._memory)

    def write_to(self, log_file: Path) -> None:
        """Write the held records to the file, and log to it from now on."""
        file = logging.FileHandler(log_file, encoding="utf-8")
        _add_handler(file)
        self._memory.setTarget(file)
        self._memory.flush()
        logging.getLogger("safmn").removeHandler(self._memory)


class _BarFriendlyHandler(logging.Handler):
    """Log handler that writes through tqdm, so that log lines do not break a progress bar.

    If the terminal or pipe has been closed, the line is lost, but the run continues, or saves and ends.
    """

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if getattr(record, "file_only", False):
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # like logging's own handlers
            self.handleError(record)
