"""Examine an option file: its options, its data sets, and a trial of the run (``safmn doctor -opt``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import yaml

from safmn.doctor.advice import examine_options
from safmn.doctor.findings import Finding, State
from safmn.doctor.run import Notes, try_run, try_test
from safmn.doctor.sets import examine_sets
from safmn.errors import UserError
from safmn.options import load_options
from safmn.options.shipped import find_option_file
from safmn.training.resuming import check_source


def examine_file(path: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """Examine an option file for training, or one for testing if it has no section ``train``.

    Args:
        path: the file, or the name of one that comes with the package.
        overrides: entries of ``--force_yml``.

    Raises:
        OSError: the file cannot be read.
    """
    mode = _mode(path)
    notes = Notes()
    log = logging.getLogger("safmn")
    log.addHandler(notes)
    log.propagate = False
    try:
        findings = _examined(path, mode, overrides, notes)
    except UserError as error:
        findings = [Finding(State.FAILS, "option file", str(error))]
    finally:
        log.removeHandler(notes)
    return findings + [Finding(State.BETTER, "warning", text) for text in dict.fromkeys(notes.messages)]


def _examined(path: str, mode: Literal["train", "test"], overrides: Sequence[str], notes: Notes) -> list[Finding]:
    """Return the findings about the options, the data sets and the trial.

    Raises:
        UserError: the options cannot be used.
    """
    options = load_options(path, mode=mode, overrides=overrides)
    findings = [Finding(State.FINE, "option file", f"{options.source}, for {mode}ing")]
    findings += examine_options(options)
    if mode == "train":
        check_source(options)  # the trial starts from the beginning
    found, sets = examine_sets(options)
    findings += found
    if not any(finding.state is State.FAILS for finding in found):
        findings += try_run(path, overrides, notes) if mode == "train" else try_test(options, sets)
    elif mode == "train":
        text = "left out, because the data sets must be in order first"
        findings.append(Finding(State.BETTER, "trial run", text))
    return findings


def _mode(path: str) -> Literal["train", "test"]:
    """Return whether an option file is for training; a file that is no YAML is refused by the loader later."""
    text = find_option_file(path).read_bytes()
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):
        return "train"
    return "train" if isinstance(data, dict) and ("train" in data or "network_d" in data) else "test"
