"""The keys of data set sections in option files, as typed Structs. Each data set names its Struct as ``OPTIONS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from safmn.errors import OptionError

Options = TypeVar("Options", bound=msgspec.Struct)


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that all data sets of SAFMN share.

    Attributes:
        type: Name of the data set class.
        name: Name of the data set in logs and tables.
        phase: Set by SAFMN from the section's name.
        scale: Set by SAFMN from the option file's ``scale``.
    """

    type: str
    name: str = ""
    phase: Literal["train", "val", "test"] = "train"
    scale: int = 1


class CropOptions(CommonOptions, frozen=True, kw_only=True):
    """Keys of a data set that provides random training patches.

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
        """Side of the LQ crop in pixels.

        Raises:
            OptionError: ``gt_size`` is missing, less than 1, or not a multiple of the scale.
        """
        if self.gt_size is None:
            raise OptionError(f"data set {self.name!r}: gt_size is needed for training")
        if self.gt_size < 1:
            raise OptionError(f"data set {self.name!r}: gt_size {self.gt_size} is too small; set it to 128 or more")
        if self.gt_size % self.scale:
            raise OptionError(f"data set {self.name!r}: gt_size {self.gt_size} is not a multiple of scale {self.scale}")
        return self.gt_size // self.scale


class IoBackend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are stored: as files in a folder, or in an lmdb."""

    type: Literal["disk", "lmdb"] = "disk"


def read_options(kind: type[Options], section: Mapping[str, Any]) -> Options:
    """Check and convert the keys of ``section`` that the Struct ``kind`` declares; ignore others, such as the loader's.

    Raises:
        OptionError: a key is missing or has the wrong type; the message names data set and key.
    """
    declared = {field.encode_name for field in msgspec.structs.fields(kind)}
    try:
        return msgspec.convert({key: value for key, value in section.items() if key in declared}, kind)
    except msgspec.ValidationError as error:
        message = str(error).replace("Object missing required field", "missing key").replace("at `$.", "at `")
        raise OptionError(f"data set {section.get('name', section.get('type', '?'))!r}: {message}") from error
