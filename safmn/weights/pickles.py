"""Read the pickles in PyTorch files: descriptions of tensors, and plain data. Nothing is imported or called.

A pickle is a program for a small stack machine. This machine supports what a state dict needs: numbers, strings, lists,
dictionaries and PyTorch's descriptions of tensors. These stay descriptions (:class:`StoredTensor`) until their sizes
are checked. The machine refuses the names of all other classes and functions. The names come from ``torch/_utils.py``.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from safmn.errors import WeightsError

_MOST_STEPS = 2_000_000  # of the machine; 10,000 tensors take half a million
_MOST_BITS = 1024  # of an integer
_MOST_DIMENSIONS = 64
_LARGEST = 2**62  # of a size, a stride or an offset


class DamagedPickle(ValueError):
    """The pickle is incomplete or not a valid program."""


@dataclass(frozen=True, eq=False)
class Storage:
    """A block of ``values`` numbers of type ``dtype`` in a file, as the pickle describes it."""

    key: str
    dtype: torch.dtype
    values: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as the pickle describes it: a view that was checked to lie within its storage."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """The bytes of all its values; repeated values count repeatedly."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Unusable:
    """A value that cannot be loaded; ``what`` describes it in words."""

    what: str


@dataclass(frozen=True, eq=False)
class _Name:
    """A class or function that the pickle names."""

    name: str


_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
}
_NO_VALUES = "a sparse tensor or one without values"


def _storage_type(name: _Name) -> torch.dtype:
    module, _, kind = name.name.rpartition(".")
    dtype = _STORAGES.get(kind.removesuffix("Storage"))
    if module not in ("torch", "torch.cuda", "torch.storage") or dtype is None:
        raise DamagedPickle(f"{name.name} is not a storage type")
    return dtype


def _described(storage: Any, offset: int, shape: Any, stride: Any, dtype: torch.dtype | None = None) -> StoredTensor:
    """Return a tensor's description after checking that it is valid and lies within its storage."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise DamagedPickle("a tensor has a wrong description")
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers) or len(shape) != len(stride):
        raise DamagedPickle(f"a tensor has impossible sizes ({shape}, {stride}, {offset})"[:200])
    dtype = storage.dtype if dtype is None else dtype
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    room = storage.values * storage.dtype.itemsize // dtype.itemsize
    if len(shape) > _MOST_DIMENSIONS or (0 not in shape and last >= room):
        raise DamagedPickle(f"a tensor of shape {shape} does not lie within its {room} values"[:200])
    return StoredTensor(storage, dtype, shape, stride, offset)


def _with_dtype(storage: Any, offset: int, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    if not isinstance(dtype, torch.dtype):
        raise DamagedPickle("a tensor has no data type")
    return _described(storage, offset, shape, stride, dtype)


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    return _called(function, arguments)


def _dictionary(items: Any = (), **_: Any) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    return {_key(key): value for key, value in pairs}


def _unusable(what: str) -> Callable[..., Unusable]:
    return lambda *_: Unusable(what)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "torch.Size": lambda sides=(): tuple(sides),
    "torch.nn.parameter.Parameter": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _described,
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: _described(
        storage, offset, shape, stride
    ),
    "torch._utils._rebuild_tensor_v3": _with_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_sparse_tensor": _unusable(_NO_VALUES),
    "torch._utils._rebuild_meta_tensor_no_storage": _unusable(_NO_VALUES),
    "torch._utils._rebuild_qtensor": _unusable("a quantised tensor"),
    "torch._utils._rebuild_nested_tensor": _unusable("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _unusable("a tensor of another kind"),
    "torch._utils._rebuild_device_tensor_from_numpy": _unusable("a tensor of another device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _unusable("a tensor of another device"),
    "torch.Tensor": _unusable("a tensor of PyTorch before 0.4"),
    "torch.FloatTensor": _unusable("a tensor of PyTorch before 0.4"),
    "torch.device": _unusable("the name of a device"),
    "torch.serialization._get_layout": _unusable("the name of a layout"),
    "_codecs.encode": lambda text, *_: str(text).encode("latin1"),
    "builtins.bytearray": _unusable("bytes"),
    "builtins.set": _unusable("a set"),
    "builtins.complex": _unusable("a complex number"),
}
_QUANTISATION = {"per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"}
_NAMED = {f"torch.{name}" for name in (*_QUANTISATION, "per_channel_affine_float_qparams")}
_OLD_MODULES = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}


def _called(function: Any, arguments: Any) -> Any:
    """Return the description that stands for a call in the pickle; the named function is never called."""
    if not isinstance(function, _Name) or function.name not in _CALLS or not isinstance(arguments, tuple):
        raise DamagedPickle("it calls something that is not a function")
    try:
        return _CALLS[function.name](*arguments)
    except DamagedPickle:
        raise
    except (TypeError, ValueError) as error:
        raise DamagedPickle(f"{function.name}: {error}"[:200]) from error


def _named(module: str, name: str) -> Any:
    """Return what the pickle names.

    Raises:
        WeightsError: the name is not allowed.
    """
    full = f"{_OLD_MODULES.get(module, module)}.{name}"
    if full in _DTYPES:
        return _DTYPES[full]
    is_storage = full.endswith("Storage") and full.startswith("torch.")
    if full not in _CALLS and full not in _NAMED and not is_storage:
        raise WeightsError(
            f"contains a pickled Python object ({full}), not only weights. It is refused because loading it would run "
            "code. Ask for a plain state dict or a .safetensors file."
        )
    return _Name(full)


def _key(key: Any) -> Any:
    """Return a dictionary's key if it is a simple one; hashing nested tuples could take almost forever."""
    simple = (str, int, float, bytes, type(None))
    if isinstance(key, simple) or (isinstance(key, tuple) and all(isinstance(item, simple) for item in key)):
        return key
    raise DamagedPickle("a dictionary has a key that is neither a name nor a number")


class _Machine:
    """A stack machine that runs one pickle. ``storages`` collects the storages that the pickle names, by key."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes | IO[bytes]) -> Any:
        for steps, (operation, argument, _) in enumerate(pickletools.genops(program)):
            if steps > _MOST_STEPS:
                raise DamagedPickle("the description of its content is too long")
            if operation.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[operation.name]())
            elif operation.name in _LITERALS:
                if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                    raise DamagedPickle("a number is too long")
                self.stack.append(argument)
            elif operation.name == "STOP":
                return self.stack.pop()
            else:
                step = getattr(self, f"_{operation.name.lower()}", None)
                if step is None:
                    raise DamagedPickle(f"it uses an operation that no weight file needs ({operation.name})")
                step(argument)
        raise DamagedPickle("the description of its content is incomplete")

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    _binget = _long_binget = _get

    def _tuple(self, _: Any) -> None:
        items = tuple(self._since_mark())
        self.stack.append(items)

    def _pack(self, number: int) -> None:
        if len(self.stack) < number:
            raise DamagedPickle("a tuple lacks its items")
        self.stack[-number:] = [tuple(self.stack[-number:])]

    def _tuple1(self, _: Any) -> None:
        self._pack(1)

    def _tuple2(self, _: Any) -> None:
        self._pack(2)

    def _tuple3(self, _: Any) -> None:
        self._pack(3)

    def _list(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._fill(items)

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise DamagedPickle("it adds items to something that is not a list")
        self.stack[-1].extend(items)

    def _additems(self, _: Any) -> None:
        self._since_mark()  # drop the items: a set is only described

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise DamagedPickle("it adds items to something that is not a dictionary")
        self.stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_named(str(module), str(name)))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(function, arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        """Drop the attributes of a dictionary, such as ``_metadata`` of a state dict: they are not weights."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (dict, Unusable)):
            raise DamagedPickle("it sets attributes of something that has none")

    def _binpersid(self, _: Any) -> None:
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise DamagedPickle("a reference is not a storage")
        _, kind, key, _, values, *view = identity
        if not isinstance(kind, _Name) or type(values) is not int or not 0 <= values < _LARGEST or any(view):
            raise DamagedPickle("a storage has a wrong description")
        storage = Storage(str(key), _storage_type(kind), values)
        known = self.storages.setdefault(storage.key, storage)
        if (known.dtype, known.values) != (storage.dtype, storage.values):
            raise DamagedPickle(f"storage {storage.key} has two different descriptions")
        self.stack.append(known)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Unusable("a set"),
}
_TEXTS = ["STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"]
_BYTES = ["BINBYTES", "SHORT_BINBYTES", "BINBYTES8"]
_NUMBERS = ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"]
_LITERALS = {*_TEXTS, *_BYTES, *_NUMBERS}


def read_pickle(program: bytes | IO[bytes], storages: dict[str, Storage]) -> Any:
    """Return the content of one pickle: plain data, :class:`StoredTensor` and :class:`Unusable`.

    Args:
        program: the pickle, or a file (or memory map) positioned at its start; it is left positioned after its end.
        storages: receives the described storages, by key.

    Raises:
        WeightsError: the pickle holds an object of a class that is not allowed; the message names the class.
        DamagedPickle: the pickle is invalid or incomplete.
    """
    try:
        return _Machine(storages).run(program)
    except (IndexError, KeyError, UnicodeError, RecursionError) as error:
        raise DamagedPickle(f"{type(error).__name__} in the description of its content") from error
    except WeightsError:
        raise
    except DamagedPickle:
        raise
    except ValueError as error:  # from pickletools
        raise DamagedPickle(f"{error}"[:200]) from error
