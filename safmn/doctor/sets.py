"""Look at every image of an option file's data sets before a run (``safmn doctor -opt``).

Images that are sound are remembered by path, size and time of change, so that a second look takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from safmn.data import build_dataset
from safmn.data.paired import PairedImageDataset
from safmn.data.sample_keys import SampleKey, sample_rng
from safmn.data.sources import Pair, check_sizes
from safmn.doctor.findings import Finding, State
from safmn.doctor.pairs import Compared, mismatch, other_kernel
from safmn.errors import UserError, first_line
from safmn.options import Options
from safmn.prepare.hints import absence, is_on_request
from safmn.prepare.parallel import default_jobs, in_order, progress
from safmn.system.files import cache_folder, write_atomically
from safmn.value_types import Array

_NAMED = 3  # images that a finding names
_REDUCED = 4  # pairs whose kernel is looked for
_TRIED = 100  # samples that are drawn from a data set whose files are unknown
_FLAT = 1.0  # levels: standard deviation of an image of one colour


class Looked(msgspec.Struct, frozen=True):
    """What one look at an image or a pair found.

    Attributes:
        name: path of the GT image, or of the image.
        problem: why it cannot be used, None if it can.
        forms: the kinds of files, such as ``GT png, 8 bits``.
        flat: whether the image shows one colour only.
        content: checksum of the GT pixels.
    """

    name: str
    problem: str | None = None
    forms: tuple[str, ...] = ()
    flat: bool = False
    content: int = 0


class _Item(NamedTuple):
    """A pair, or an image without partner (``lq`` is None), and the readers of its files."""

    gt: str
    lq: str | None
    gt_reader: Any
    lq_reader: Any
    role: str = "GT"


def examine_sets(options: Options) -> tuple[list[Finding], dict[str, Any]]:
    """Build the data sets of an option file and look at all their images.

    Returns:
        The findings, and the data sets that could be built: section name -> data set.
    """
    findings: list[Finding] = []
    sets: dict[str, Any] = {}
    contents: dict[str, dict[int, str]] = {}
    for name, section in options.datasets.items():
        subject = _subject(name, section)
        phase = name.split("_")[0]
        try:
            sets[name] = build_dataset(section, phase=phase, scale=options.scale, seed=options.manual_seed)
        except (UserError, OSError) as error:
            missing = absence(section)
            if missing and _is_left_out(name, options):
                findings.append(Finding(State.BETTER, subject, f"is left out: {missing}"))
            else:
                findings.append(Finding(State.FAILS, subject, missing or first_line(error)))
            continue
        for part, dataset in _parts(sets[name]):
            found, contents_of = _examine(f"{subject}{part}", dataset, phase, options)
            findings += found
            contents.setdefault("train" if phase == "train" else name, {}).update(contents_of)
    return findings + _shared(contents, options), sets


def _is_left_out(name: str, options: Options) -> bool:
    """Return whether a test leaves out a set that is missing, because its authors only give it on request."""
    if options.train is not None or options.datasets[name].get("name", name) in options.expect:
        return False
    on_request = {key for key, section in options.datasets.items() if is_on_request(section.get("dataroot_gt") or "")}
    return name in on_request and len(on_request) < len(options.datasets)


def _subject(name: str, section: Mapping[str, Any]) -> str:
    title = section.get("name")
    return f"{name} ({title})" if title and title != name else name


def _parts(dataset: Any) -> list[tuple[str, Any]]:
    """Return the parts of a mixture with their names, or the data set itself."""
    parts = getattr(dataset, "parts", None)
    if not isinstance(parts, dict):
        return [("", dataset)]
    return [(f" {name}{inner}", part) for name, whole in parts.items() for inner, part in _parts(whole)]


def _items(dataset: Any) -> list[_Item] | None:
    """Return the files of a data set; None if it does not tell them, or makes the LQ images itself."""
    if isinstance(dataset, PairedImageDataset) and type(dataset)._read is not PairedImageDataset._read:
        return None
    if hasattr(dataset, "pairs") and hasattr(dataset, "gt_reader"):
        return [_Item(pair.gt, pair.lq, dataset.gt_reader, dataset.lq_reader) for pair in dataset.pairs]
    if hasattr(dataset, "paths") and hasattr(dataset, "reader"):
        role = "GT" if getattr(dataset, "degrades", False) else "LQ"
        return [_Item(path, None, dataset.reader, None, role) for path in dataset.paths]
    return None


def _examine(subject: str, dataset: Any, phase: str, options: Options) -> tuple[list[Finding], dict[int, str]]:
    items = _items(dataset)
    if items is None:
        return [_draw_samples(subject, dataset, phase, options)], {}
    is_cut = phase == "train" and not getattr(dataset, "enlarges", False)
    patch = getattr(dataset, "lq_patch", 0) if is_cut else 0
    memory = _Memory(subject, items, options.scale, patch)

    def look(item: _Item) -> Looked:
        return memory.of(item) or _look(item, options.scale, patch, training=phase == "train")

    looked = []
    with contextlib.closing(in_order(look, items, default_jobs())) as results:
        for result in progress(results, len(items), subject):
            looked.append(result())
    memory.keep(items, looked)
    findings = _judge(subject, looked, is_pair=items[0].lq is not None)
    if not any(one.problem for one in looked):
        findings += _kernel(subject, items, options.scale)
    return findings, {one.content: one.name for one in looked if one.content}


def _kernel(subject: str, items: Sequence[_Item], scale: int) -> list[Finding]:
    """Return a finding if the LQ images of a few pairs, which are sound, were made by another kernel than MATLAB's."""
    chosen = items[:: -(-len(items) // _REDUCED)]
    pairs = [
        Compared(item.gt_reader.read(item.gt), item.lq_reader.read(item.lq), item.gt, item.lq, scale)
        for item in chosen
        if item.lq is not None
    ]
    name = other_kernel(pairs)
    if name is None:
        return []
    text = (
        f"the LQ images were made by {name}, not by MATLAB's bicubic: scores do not compare with published ones, and "
        "networks trained for the one do worse on the other; safmn prepare lr makes MATLAB's"
    )
    return [Finding(State.BETTER, subject, text)]


def _look(item: _Item, scale: int, patch: int, *, training: bool) -> Looked:
    """Read an image or a pair completely."""
    try:
        gt = item.gt_reader.read(item.gt)
        forms = [_form(item.role, item.gt, gt)]
        if item.lq is not None:
            lq = item.lq_reader.read(item.lq)
            forms.append(_form("LQ", item.lq, lq))
            check_sizes(gt, lq, scale, Pair(item.gt, item.lq), training=training)
            problem = mismatch(Compared(gt, lq, item.gt, item.lq, scale))
            smallest = min(lq.shape[:2])
        else:
            problem, smallest = None, min(gt.shape[:2]) // scale
    except (UserError, OSError) as error:
        return Looked(item.gt, first_line(error))
    if problem is None and smallest < patch:
        problem = (
            f"{item.gt} is {gt.shape[1]}x{gt.shape[0]}, smaller than the patch of {patch * scale}x{patch * scale}: "
            "remove it or lower gt_size"
        )
    flat = bool(gt.std() * (1 if gt.dtype == np.uint8 else 1 / 257) < _FLAT)
    return Looked(item.gt, problem, tuple(forms), flat, zlib.crc32(np.ascontiguousarray(gt).data) or 1)


def _form(role: str, path: str, pixels: Array) -> str:
    kind = os.path.splitext(path)[1].lower().lstrip(".").replace("jpeg", "jpg") or "lmdb"
    return f"{role} {kind}, {8 if pixels.dtype == np.uint8 else 16} bits"


def _judge(subject: str, looked: Sequence[Looked], *, is_pair: bool) -> list[Finding]:
    """Return the findings about one data set."""
    findings = []
    problems = [one.problem.rstrip(".") for one in looked if one.problem]
    if problems:
        count = len(problems)
        problems = list(dict.fromkeys(problems))  # a damaged lmdb has the same for all images
        more = f", and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        text = f"{count} of {len(looked)}: {'; '.join(problems[:_NAMED])}{more}"
        findings.append(Finding(State.FAILS, subject, text))
    else:
        kinds = Counter(form for one in looked for form in one.forms)
        text = "; ".join(f"{count} {form}" for form, count in kinds.most_common())
        findings.append(Finding(State.FINE, subject, f"{len(looked)} {'pairs' if is_pair else 'images'}: {text}"))
    findings += _advice(subject, looked)
    return findings


def _advice(subject: str, looked: Sequence[Looked]) -> list[Finding]:
    jpeg = [one.name for one in looked if any(form.startswith("GT jpg") for form in one.forms)]
    flat = [one.name for one in looked if one.flat]
    findings = []
    if jpeg:
        text = f"{len(jpeg)} GT images are JPEG files ({_named(jpeg)}): the network learns their artefacts"
        findings.append(Finding(State.BETTER, subject, text))
    if flat:
        text = f"{len(flat)} images show one colour only ({_named(flat)}): they teach nothing"
        findings.append(Finding(State.BETTER, subject, text))
    bits = {form.split(", ")[1] for one in looked for form in one.forms}
    if len(bits) > 1:
        text = (
            f"images of {' and '.join(sorted(bits))} are mixed: values are scaled to [0, 1], check that this is meant"
        )
        findings.append(Finding(State.BETTER, subject, text))
    return findings


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _shared(contents: Mapping[str, Mapping[int, str]], options: Options) -> list[Finding]:
    """Return a finding for each validation set with images that are also in the training set."""
    training = contents.get("train", {})
    findings = []
    for name, images in contents.items():
        same = [images[content] for content in images if content in training] if name != "train" else []
        if same:
            text = f"{len(same)} of its images are also in the training set ({_named(same)}): its numbers are too good"
            findings.append(Finding(State.BETTER, _subject(name, options.datasets[name]), text))
    return findings


def _draw_samples(subject: str, dataset: Any, phase: str, options: Options) -> Finding:
    """Draw samples from a data set that does not tell its files, as training or validation does."""
    count = min(len(dataset), _TRIED)
    for number in progress(range(count), count, subject):
        index = number * len(dataset) // count
        try:
            if phase == "train" and hasattr(dataset, "sample"):
                dataset.sample(index, sample_rng(options.manual_seed, SampleKey(0, index)))
            else:
                dataset[index]
        except Exception as error:  # a user's data set may raise anything
            return Finding(State.FAILS, subject, f"sample {index}: {type(error).__name__}: {first_line(error)}")
    return Finding(State.FINE, subject, f"{len(dataset)} images; {count} samples were drawn")


class _Memory:
    """What was found out about a data set's files; kept in the cache folder."""

    def __init__(self, subject: str, items: Sequence[_Item], scale: int, patch: int) -> None:
        roots = "|".join(sorted({os.path.dirname(os.path.abspath(item.gt)) for item in items}))
        key = hashlib.sha256(f"{subject}|{scale}|{patch}|{roots}".encode()).hexdigest()[:20]
        self._file = cache_folder() / "doctor" / f"{key}.json"
        try:
            self._known = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Looked])
        except (OSError, msgspec.DecodeError):
            self._known = {}

    def of(self, item: _Item) -> Looked | None:
        """Return what is known about an item, None if its files have changed or are new."""
        return self._known.get(self._state(item) or "")

    def keep(self, items: Sequence[_Item], looked: Sequence[Looked]) -> None:
        """Store what was found about sound items. A cache that cannot be written is no error."""
        states = {self._state(item): one for item, one in zip(items, looked, strict=True) if one.problem is None}
        known = {state: one for state, one in states.items() if state}
        if not known or known == self._known:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, msgspec.json.encode(known))

    @staticmethod
    def _state(item: _Item) -> str | None:
        """Return paths, sizes and times of change; None for images that are not files."""
        try:
            states = [Path(path).stat() for path in (item.gt, item.lq) if path is not None]
        except OSError:
            return None
        parts = [f"{state.st_size},{state.st_mtime_ns}" for state in states]
        return "|".join([os.path.abspath(item.gt), os.path.abspath(item.lq or ""), *parts])
