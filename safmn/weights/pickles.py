"""Reads the pickles in PyTorch's files: what they say about tensors, and plain data. Nothing is imported or called.

A pickle is a program for a small machine with a stack. This one knows what a state dict needs: numbers, strings, lists,
dictionaries and PyTorch's descriptions of tensors, which stay descriptions (:class:`StoredTensor`) until their sizes
are checked. Any other name of a class or function is refused. The names are those of ``torch/_utils.py``.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from safmn.errors import WeightsError

_MOST_STEPS = 2_000_000  # of the machine; a network of 10,000 tensors takes half a million
_MOST_BITS = 1024  # of a whole number
_MOST_DIMENSIONS = 64
_LARGEST = 2**62  # of a size, a stride or an offset


class DamagedPickle(ValueError):
    """The pickle breaks off, or is no sound program."""


@dataclass(frozen=True, eq=False)
class Storage:
    """A block of values in a file, as the pickle describes it: ``values`` numbers of ``dtype``."""

    key: str
    dtype: torch.dtype
    values: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as the pickle describes it: a view of a storage that lies within it (checked)."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values, each counted."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Unusable:
    """A value that is kept as its description: ``what`` says in words what it is."""

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
        raise DamagedPickle(f"{name.name} is not a kind of storage")
    return dtype


def _described(storage: Any, offset: int, shape: Any, stride: Any, dtype: torch.dtype | None = None) -> StoredTensor:
    """A tensor, where its description is sound and lies within its storage."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise DamagedPickle("a tensor is described wrongly")
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers) or len(shape) != len(stride):
        raise DamagedPickle(f"a tensor is described by impossible sizes ({shape}, {stride}, {offset})"[:200])
    dtype = storage.dtype if dtype is None else dtype
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    room = storage.values * storage.dtype.itemsize // dtype.itemsize
    if len(shape) > _MOST_DIMENSIONS or (0 not in shape and last >= room):
        raise DamagedPickle(f"a tensor of shape {shape} does not lie within its {room} values"[:200])
    return StoredTensor(storage, dtype, shape, stride, offset)


def _with_dtype(storage: Any, offset: int, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    if not isinstance(dtype, torch.dtype):
        raise DamagedPickle("a tensor without a data type")
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
    """What a call of the pickle gives: a description, never a call of what it names."""
    if not isinstance(function, _Name) or function.name not in _CALLS or not isinstance(arguments, tuple):
        raise DamagedPickle("something is called that is no function")
    try:
        return _CALLS[function.name](*arguments)
    except DamagedPickle:
        raise
    except (TypeError, ValueError) as error:
        raise DamagedPickle(f"{function.name}: {error}"[:200]) from error


def _named(module: str, name: str) -> Any:
    """What the pickle names, where it is allowed."""
    full = f"{_OLD_MODULES.get(module, module)}.{name}"
    if full in _DTYPES:
        return _DTYPES[full]
    is_storage = full.endswith("Storage") and full.startswith("torch.")
    if full not in _CALLS and full not in _NAMED and not is_storage:
        raise WeightsError(
            f"holds a pickled Python object ({full}) and not only weights; it is refused, since loading it would run "
            "code. Ask for a plain state dict or a .safetensors file."
        )
    return _Name(full)


def _key(key: Any) -> Any:
    """A dictionary's key, where it is a simple one: to hash one of nested tuples may take for ever."""
    simple = (str, int, float, bytes, type(None))
    if isinstance(key, simple) or (isinstance(key, tuple) and all(isinstance(item, simple) for item in key)):
        return key
    raise DamagedPickle("a dictionary with a key that is neither a name nor a number")


class _Machine:
    """Runs one pickle. ``storages`` collects the storages that it names, by key."""

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
                    raise DamagedPickle("a number of many thousand digits")
                self.stack.append(argument)
            elif operation.name == "STOP":
                return self.stack.pop()
            else:
                step = getattr(self, f"_{operation.name.lower()}", None)
                if step is None:
                    raise DamagedPickle(f"an operation that no weight file needs ({operation.name})")
                step(argument)
        raise DamagedPickle("it breaks off")

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
            raise DamagedPickle("a tuple without its items")
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
            raise DamagedPickle("items for something that is no list")
        self.stack[-1].extend(items)

    def _additems(self, _: Any) -> None:
        self._since_mark()  # of a set, which is kept as its description

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: Sequence[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise DamagedPickle("items for something that is no dictionary")
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
        """Attributes: of a dictionary (``_metadata`` of a state dict), which are no weights."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (dict, Unusable)):
            raise DamagedPickle("attributes of something that has none")

    def _binpersid(self, _: Any) -> None:
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise DamagedPickle("a reference that is no storage")
        _, kind, key, _, values, *view = identity
        if not isinstance(kind, _Name) or type(values) is not int or not 0 <= values < _LARGEST or any(view):
            raise DamagedPickle("a storage is described wrongly")
        storage = Storage(str(key), _storage_type(kind), values)
        known = self.storages.setdefault(storage.key, storage)
        if (known.dtype, known.values) != (storage.dtype, storage.values):
            raise DamagedPickle(f"storage {storage.key} is described in two ways")
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
    """The content of one pickle: plain data, :class:`StoredTensor` and :class:`Unusable`.

    Args:
        program: the pickle, or a file (or memory map) that stands at its beginning, and afterwards behind its end.
        storages: is filled with what it says about storages, by key.

    Raises:
        WeightsError: it holds an object of a class that is not allowed; the message names the class.
        DamagedPickle: it is not sound, or breaks off.
    """
    try:
        return _Machine(storages).run(program)
    except (IndexError, KeyError, UnicodeError, RecursionError) as error:
        raise DamagedPickle(f"{type(error).__name__} where its content is described") from error
    except WeightsError:
        raise
    except DamagedPickle:
        raise
    except ValueError as error:  # of pickletools
        raise DamagedPickle(f"{error}"[:200]) from error
