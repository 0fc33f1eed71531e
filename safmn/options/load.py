"""Load an option file: read it, apply overrides, check everything, and return :class:`Options`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from safmn.errors import OptionError
from safmn.options import datasets, others, plugins, rules
from safmn.options.inheritance import inherited
from safmn.options.problems import KeyPath, Problems, apply_edits
from safmn.options.reader import parse_value, read_document
from safmn.options.shipped import find_option_file
from safmn.options.typed import to_struct
from safmn.options.types import Expectation, Mode, OptionFile, Options

_DEBUG_FREQUENCY = 8  # as in BasicSR


def load_options(
    path: str | Path,
    *,
    mode: Mode,
    overrides: Iterable[str] = (),
    debug: bool = False,
    tolerant: bool = False,
) -> Options:
    """Read an option file and check it completely. Nothing is built, but the modules in ``imports`` are imported.

    Args:
        path: a YAML file with BasicSR's keys and ours, or the name of one that comes with the package (``train_x4``).
        mode: the purpose; training needs ``train`` and ``datasets.train``, testing a data set, and ``network`` only the
            network.
        overrides: ``a:b=c`` entries of ``--force_yml``; ``c`` is a YAML value.
        tolerant: unknown keys, and values that a guessed type refuses, are warnings instead of mistakes; the file's
            ``tolerant: true`` does the same.
        debug: prefix the run's name with ``debug_``, log every iteration, and validate and save every 8.

    Raises:
        OptionError: the file has mistakes. The message lists all of them, each with line, key path, the expected value
            and the nearest known key.
    """
    path = find_option_file(path)
    problems = Problems(path)
    document = read_document(path, problems)
    problems.lines = document.lines
    data = inherited(document.data, path, problems)
    for entry in overrides:
        _override(data, entry, problems)
    problems.tolerant = tolerant or data.get("tolerant") is True
    _leave_out_sets(data)
    _leave_out_metrics(data)
    others.translate(data, problems)
    if debug:
        _apply_debug(data)
    if mode == "network":  # such a file need not have a run
        for key, value in (("name", path.stem), ("model_type", "SRModel"), ("datasets", {})):
            data.setdefault(key, value)
    file = to_struct(OptionFile, data, (), problems)
    if plugins.names_of(data):
        _check_before_imports(file, data, mode, problems)
        plugins.import_all(data, problems)
        problems.raise_all()  # without its components, every name that the file registers would seem unknown
    rules.check_components(data, mode, problems)
    if problems.edits:
        apply_edits(data, problems.edits)
        file = to_struct(OptionFile, data, (), Problems(path)) if file is not None else None
    if file is not None:
        rules.check_sense(file, data, mode, problems)
    problems.raise_all()
    problems.log_warnings()
    assert file is not None  # otherwise a problem was noted
    return _resolve(file, str(path), mode, debug, copy.deepcopy(data))


def _check_before_imports(file: OptionFile | None, data: dict[str, Any], mode: Mode, problems: Problems) -> None:
    """Raise the mistakes that can be found without the user's code, so that a wrong file does not run any code.

    Unknown component names are not reported yet: an imported module may register them.
    """
    early = problems.before_imports()
    plugins.check_files(data, early)
    rules.check_components(data, mode, early)
    if file is not None:
        rules.check_sense(file, data, mode, early)
    early.raise_all()


def _override(data: dict[str, Any], entry: str, problems: Problems) -> None:
    """Apply one override ``a:b=c``. Missing sections are created, and checked later like the rest of the file."""
    keys, equals, text = entry.partition("=")
    path: KeyPath = tuple(key.strip() for key in keys.split(":"))
    if not equals or not all(path) or (len(path) == 1 and "." in keys):
        raise OptionError(f"--force_yml {entry}: expected key:key=value, for example train:total_iter=1000")
    try:
        value = parse_value(text.strip())
    except OptionError as error:
        raise OptionError(f"--force_yml {entry}: {error}") from None
    section: Any = data
    for depth, key in enumerate(path[:-1]):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            problems.add(path[: depth + 1], f"is not a section, so --force_yml {entry} cannot set a key in it")
            return
    section[path[-1]] = value
    problems.overridden[path] = entry


def _leave_out_sets(data: dict[str, Any]) -> None:
    """Remove data sets that are null, and the expectations for data sets that are no longer in the file."""
    sets, expect = data.get("datasets"), data.get("expect")
    if not isinstance(sets, dict):
        return
    left_out = [name for name, section in sets.items() if section is None and rules.phase_of(str(name)) in rules.PHASES]
    if not left_out:
        return
    data["datasets"] = sets = {name: section for name, section in sets.items() if name not in left_out}
    titles = [section.get("name") for section in sets.values() if isinstance(section, dict)]
    if isinstance(expect, dict):
        data["expect"] = {title: numbers for title, numbers in expect.items() if title in titles}


def _leave_out_metrics(data: dict[str, Any]) -> None:
    """Remove metrics that are null: a file with ``base`` or ``--force_yml`` removes one by its name."""
    val = data.get("val")
    if isinstance(val, dict) and isinstance(metrics := val.get("metrics"), dict):
        data["val"] = {**val, "metrics": {name: section for name, section in metrics.items() if section is not None}}


def _apply_debug(data: dict[str, Any]) -> None:
    name = data.get("name")
    if isinstance(name, str) and not name.startswith("debug_"):
        data["name"] = f"debug_{name}"
    if isinstance(data.get("val"), dict):
        data["val"]["val_freq"] = _DEBUG_FREQUENCY
    if data.get("logger") is None:
        data["logger"] = {}
    if isinstance(data["logger"], dict):
        data["logger"] |= {"print_freq": 1, "save_checkpoint_freq": _DEBUG_FREQUENCY}


def _resolve(file: OptionFile, path: str, mode: Mode, debug: bool, raw: dict[str, Any]) -> Options:
    degradation = rules.degradation_keys(file, raw)
    places = {name: _home(value) for name, value in msgspec.structs.asdict(file.path).items()}
    same = {
        name: getattr(file, name)
        for name in Options.__struct_fields__
        if name in OptionFile.__struct_fields__ and name not in ("num_gpu", "datasets", "degradation", "path", "expect")
    }
    return Options(
        source=path,
        mode=mode,
        debug=debug,
        raw=raw,
        num_gpu=_count_of_gpus() if file.num_gpu == "auto" else file.num_gpu,
        datasets={name: _dataset(name, section, file.scale, degradation) for name, section in file.datasets.items()},
        degradation=degradation,
        path=msgspec.structs.replace(file.path, **places),
        expect={name: _expectation(numbers) for name, numbers in file.expect.items()},
        **same,
    )


def _count_of_gpus() -> int:
    from safmn.runtime.execution import device_count  # only here, because reading an option file needs no device

    return device_count()


def _dataset(name: str, section: dict[str, Any], scale: int, degradation: dict[str, Any]) -> dict[str, Any]:
    """Return a data set's options for its constructor: with the phase, the scale, and ``~`` expanded.

    A data set that degrades images also gets the degradation's keys from the rest of the file.
    """
    expanded = {key: _home(value) if key in datasets.PATHS else value for key, value in section.items()}
    outside = {"degradation": degradation} if datasets.degrades_any(section) else {}
    return expanded | {"phase": rules.phase_of(name), "scale": scale} | outside


def _home(value: Any) -> Any:
    if isinstance(value, list):
        return [_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def _expectation(numbers: dict[str, Any]) -> Expectation:
    values = {key: float(value) for key, value in numbers.items() if key != "tolerance"}
    tolerance = numbers["tolerance"]
    if not isinstance(tolerance, dict):
        tolerance = dict.fromkeys(values, tolerance)
    return Expectation(values=values, tolerance={key: float(value) for key, value in tolerance.items()})
