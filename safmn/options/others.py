"""Translate keys of repositories that derive from BasicSR (HAT, DAT, NAFNet, Restormer, ...) into SAFMN's keys.

A key with a clear meaning becomes ours. A key without effect is left out; if its value asks for something that SAFMN
does not do, there is a warning. Keys that are not listed here stay as they are, and the checks refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from safmn.options.problems import KeyPath, Problems
from safmn.options.typed import is_whole

_NAFNET_CLIP = 0.01  # maximum norm of the gradient in NAFNet's and Restormer's models, a constant in their code
_CHOP, _CHOP_OVERLAP = 200, 16  # largest side and overlap of the parts in DAT's `use_chop`, in LQ pixels
_MIXUP_BETA = 1.2  # Restormer's default
_CLIPPING_MODELS = ("ImageRestorationModel",)  # they clip unless `use_grad_clip` is false
_FLOAT_METRICS = "has no effect: metrics are always measured on images that are rounded to 8 bits"


class _Idle(NamedTuple):
    """A key without effect here.

    Attributes:
        section: ``top``, ``path``, ``train``, ``val`` or ``dataset``.
        name: the key.
        quiet: values that need no warning; None: all values.
        reason: the warning for other values.
    """

    section: str
    name: str
    quiet: tuple[Any, ...] | None
    reason: str = ""


_IDLE = (
    _Idle("top", "print_network", None),
    _Idle("top", "suffix", (None,), "has no effect here; give val.suffix"),
    _Idle("top", "save_img", (None, False), "has no effect here; give val.save_img"),
    _Idle("top", "crop_border", (None,), "has no effect here; give crop_border to each metric"),
    _Idle("path", "param_key", (None,), "has no effect, as in BasicSR; give param_key_g"),
    _Idle("path", "visualization", (None,), "has no effect: images are saved in the run's folder"),
    _Idle("val", "flip_seq", None),  # for videos only
    _Idle("val", "center_frame_only", None),
    _Idle("val", "rgb2bgr", (None, True), "has no effect: saved images and metrics are always right in colour"),
    _Idle("val", "use_image", (None, True), _FLOAT_METRICS),
    _Idle("val", "grids", (None, False), "has no effect; to validate in tiles, give val.tile"),
    _Idle("val", "max_minibatch", None),
)
_TASKS = ("sr", "lightsr", "classicalsr", "realsr", "car")  # values of `task` that leave the images as they are


def translate(data: dict[str, Any], problems: Problems) -> None:
    """Replace the keys of other repositories in an option file's plain data, in-place."""
    for section, where, values in list(_sections(data)):
        for idle in _IDLE:
            if idle.section == section and idle.name in values:
                value = values.pop(idle.name)
                if idle.quiet is not None and value not in idle.quiet:
                    problems.warn((*where, idle.name), idle.reason)
        if section in _TRANSLATIONS:
            _TRANSLATIONS[section](values, where, problems)
    _translate_tiles(data, problems)
    _translate_clipping(data)
    _translate_mixing(data, problems)
    _translate_amp(data, problems)


def _sections(data: dict[str, Any]) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
    """Yield the kind, the key path and the mapping of every section that may hold keys of others."""
    yield "top", (), data
    for name in ("path", "train", "val"):
        if isinstance(data.get(name), dict):
            yield name, (name,), data[name]
    sets = data.get("datasets")
    for name, section in sets.items() if isinstance(sets, dict) else ():
        if isinstance(section, dict):
            yield "dataset", ("datasets", name), section


def _move(section: dict[str, Any], old: str, new: str, where: KeyPath, problems: Problems) -> None:
    """Rename a key of a section; note a mistake if the section has both with different values."""
    if old not in section:
        return
    value = section.pop(old)
    if section.get(new) not in (None, value):
        problems.add((*where, old), f"means the same as {new}, which has another value; give only one of them")
        return
    section[new] = value
    problems.lines.setdefault((*where, new), problems.lines.get((*where, old), 0))


def _translate_data(section: dict[str, Any], where: KeyPath, problems: Problems) -> None:
    _move(section, "use_flip", "use_hflip", where, problems)  # BasicSR's first versions, NAFNet
    if section.get("type") == "Dataset_PairedImage":  # Restormer's name of the same data set
        section["type"] = "PairedImageDataset"
    if section.get("type") == "ImageNetPairedDataset":  # HAT: LQ images are made, small GT images enlarged
        section |= {"type": "PairedImageDataset", "dataroot_lq": None, "lq": {"enlarge": True}}
    if section.get("type") == "RealESRGANDataset":
        _move(section, "meta_info_file", "meta_info", where, problems)  # HAT, DRCT
    if "geometric_augs" in section:  # Restormer: the eight flips and rotations
        wanted = section.pop("geometric_augs")
        for key in ("use_hflip", "use_rot"):
            if section.get(key) is None:
                section[key] = wanted
    _translate_task(section)


def _translate_task(section: dict[str, Any]) -> None:
    """Read ``task`` of DAT, CAT and MambaIR: a name without effect, or noise that is added to the GT images."""
    task = section.get("task")
    if "task" in section and (task is None or str(task).lower() in _TASKS):
        section.pop("task")
    elif str(task).lower().startswith("denoising") and section.get("dataroot_lq") == section.get("dataroot_gt"):
        section.pop("task")  # CAT, MambaIR: noise of this level is added to the GT images
        section["dataroot_lq"] = None
        section["lq"] = {"noise": section.pop("noise", 0)}
        if str(task).lower().endswith("gray"):
            section.setdefault("color", "grey")


def _translate_val(section: dict[str, Any], where: KeyPath, problems: Problems) -> None:
    _move(section, "window_size", "window", where, problems)  # Restormer: pad to multiples of this
    _move(section, "selfensemble_testing", "self_ensemble", where, problems)  # CAT
    if section.pop("use_chop", False):  # DAT, CAT, RGT, SeemoRe: validate in parts
        section.setdefault("tile", _CHOP)
        section.setdefault("tile_overlap", _CHOP_OVERLAP)


_Translation = Callable[[dict[str, Any], KeyPath, Problems], None]
_TRANSLATIONS: dict[str, _Translation] = {"dataset": _translate_data, "val": _translate_val}


def _translate_tiles(data: dict[str, Any], problems: Problems) -> None:
    """Read HAT's top-level section ``tile`` as ``val.tile`` and ``val.tile_overlap``; CAMixerSR has a number."""
    given = data.get("tile")
    if is_whole(given):  # CAMixerSR's TileModel
        given = data["tile"] = {"tile_size": given}
    if not isinstance(given, dict) or not set(given) <= {"tile_size", "tile_pad"}:
        return
    data.pop("tile")
    if data.get("val") is None:
        data["val"] = {}
    if isinstance(data["val"], dict):
        for old, new in (("tile_size", "tile"), ("tile_pad", "tile_overlap")):
            if old in given:
                data["val"].setdefault(new, given[old])
                problems.lines.setdefault(("val", new), problems.lines.get(("tile", old), 0))


def _translate_clipping(data: dict[str, Any]) -> None:
    """Read ``use_grad_clip`` of NAFNet and Restormer, whose models clip at a constant norm, as ``grad_clip``."""
    train = data.get("train")
    if not isinstance(train, dict):
        return
    clips = train.pop("use_grad_clip", data.get("model_type") in _CLIPPING_MODELS)
    if clips is True:
        train.setdefault("grad_clip", _NAFNET_CLIP)


def _translate_mixing(data: dict[str, Any], problems: Problems) -> None:
    """Read Restormer's ``mixing_augs`` as the augmentation MixUp. With ``use_identity``, half of the patches get it."""
    train, sets = data.get("train"), data.get("datasets")
    section = train.get("mixing_augs") if isinstance(train, dict) else None
    training_set = sets.get("train") if isinstance(sets, dict) else None
    known = ("mixup", "mixup_beta", "use_identity")
    if not isinstance(section, dict) or not set(section) <= set(known) or not isinstance(training_set, dict):
        return
    assert isinstance(train, dict)
    del train["mixing_augs"]
    if section.get("mixup") is not True:
        return
    if training_set.get("augmentations"):
        problems.add(("train", "mixing_augs"), "is given beside datasets.train.augmentations; put MixUp there")
        return
    probability = 0.5 if section.get("use_identity") else 1.0
    alpha = section.get("mixup_beta", _MIXUP_BETA)
    training_set["augmentations"] = [{"type": "MixUp", "prob": probability, "alpha": alpha}]


def _translate_amp(data: dict[str, Any], problems: Problems) -> None:
    """Read PLKSR's top-level ``use_amp`` (float16 with a loss scale) as ``train.precision``."""
    train, wanted = data.get("train"), data.get("use_amp")
    if not isinstance(wanted, bool):
        return
    del data["use_amp"]
    if wanted and isinstance(train, dict):
        train.setdefault("precision", "fp16")
        problems.lines.setdefault(("train", "precision"), problems.lines.get(("use_amp",), 0))
