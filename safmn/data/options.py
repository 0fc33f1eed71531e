"""The keys of a data set's section in an option file, as typed Structs: each data set's class attribute ``OPTIONS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from safmn.errors import OptionError

Options = TypeVar("Options", bound=msgspec.Struct)


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of every data set of ours.

    Attributes:
        type: The data set.
        name: What logs and tables call it.
        phase: Filled in: what the section's name says.
        scale: Filled in: the option file's.
    """

    type: str
    name: str = ""
    phase: Literal["train", "val", "test"] = "train"
    scale: int = 1


class CropOptions(CommonOptions, frozen=True, kw_only=True):
    """Keys of a data set that is cut into training patches.

    Attributes:
        gt_size: Side of the GT patch in pixels, a multiple of the scale; needed for training.
        use_hflip: Flip half of the patches left to right.
        use_rot: Flip half of the patches top to bottom, and transpose half of them.
    """

    gt_size: int | None = None
    use_hflip: bool = False
    use_rot: bool = False

    @property
    def lq_patch(self) -> int:
        """Side of the LQ crop.

        Raises:
            OptionError: ``gt_size`` is missing or no multiple of the scale.
        """
        if self.gt_size is None:
            raise OptionError(f"data set {self.name!r}: gt_size is needed for training")
        if self.gt_size < 1:
            raise OptionError(f"data set {self.name!r}: gt_size {self.gt_size} is no size; set it to 128 or more")
        if self.gt_size % self.scale:
            raise OptionError(f"data set {self.name!r}: gt_size {self.gt_size} is no multiple of scale {self.scale}")
        return self.gt_size // self.scale


class IoBackend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are stored: files in a folder, or an lmdb."""

    type: Literal["disk", "lmdb"] = "disk"


def read_options(kind: type[Options], section: Mapping[str, Any]) -> Options:
    """The keys of ``section`` that the Struct ``kind`` declares, checked; others (the loader's, say) are left alone.

    Raises:
        OptionError: a key is missing or of the wrong type; names data set and key.
    """
    declared = {field.encode_name for field in msgspec.structs.fields(kind)}
    try:
        return msgspec.convert({key: value for key, value in section.items() if key in declared}, kind)
    except msgspec.ValidationError as error:
        message = str(error).replace("Object missing required field", "missing key").replace("at `$.", "at `")
        raise OptionError(f"data set {section.get('name', section.get('type', '?'))!r}: {message}") from error
