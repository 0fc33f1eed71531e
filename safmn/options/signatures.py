"""Find out which arguments and option keys a component accepts, from its signature and source, without calling it."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

import msgspec

REQUIRED: Any = inspect.Parameter.empty
_PLAIN = (bool, int, float, str)
_WORDS: dict[str, Any] = {kind.__name__: kind for kind in _PLAIN} | {"dict": dict[str, Any], "list": list[Any]}
_DOCUMENTED = re.compile(rf"^\s+(\w+) \(({'|'.join(_WORDS)})\):", re.MULTILINE)


class Signature(msgspec.Struct, frozen=True):
    """The keyword arguments of a component.

    Attributes:
        hints: name -> required type of the value, or Any.
        defaults: name -> default, or REQUIRED.
        is_open: whether further keywords may be accepted, which are unknown without running the component.
        swallows: whether ``**kwargs`` accept further keywords that nothing reads.
    """

    hints: dict[str, Any]
    defaults: dict[str, Any]
    is_open: bool
    swallows: bool = False

    @property
    def required(self) -> list[str]:
        """The names of the arguments without a default."""
        return [name for name, default in self.defaults.items() if default is REQUIRED]


def signature_of(component: Callable[..., Any], without: tuple[str, ...] = ()) -> Signature:
    """Return the keyword arguments of a function or of a class's constructor.

    The effect of ``**kwargs`` depends on their use. If they are only passed to the parent's constructor, its arguments
    are added. If the code reads them, the signature is open. If nothing reads them, the signature swallows them.

    Args:
        component: the class or function.
        without: arguments to leave out, because the framework passes them.
    """
    hints: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    is_open = swallows = False
    documented = _documented(component)
    for function in _constructors(component):
        annotations = _annotations(function)
        rest = None
        for parameter in list(inspect.signature(function).parameters.values())[isinstance(component, type) :]:
            if parameter.kind is parameter.VAR_KEYWORD:
                rest = parameter.name
            elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name not in hints:
                hint = _hint(annotations.get(parameter.name, REQUIRED), parameter.default)
                required = parameter.default is REQUIRED
                hints[parameter.name] = documented.get(parameter.name, hint) if required and hint is Any else hint
                defaults[parameter.name] = parameter.default
        use = _use_of(function, rest) if rest else "nothing"
        if use != "parent":
            is_open, swallows = use == "reads", rest is not None and use == "nothing"
            break
    for name in without:
        hints.pop(name, None)
        defaults.pop(name, None)
    return Signature(hints, defaults, is_open, swallows)


def _constructors(component: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield the function itself, or the ``__init__`` of the class and of its parents in method resolution order."""
    if not isinstance(component, type):
        yield component
        return
    for kind in component.__mro__:
        if kind is not object and "__init__" in vars(kind):
            yield vars(kind)["__init__"]


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # ignore annotations that cannot be evaluated
        return {}


def _documented(component: Callable[..., Any]) -> dict[str, Any]:
    """Return the types in docstrings of BasicSR's style: ``crop_border (int): ...``."""
    kinds = component.__mro__ if isinstance(component, type) else (component,)
    found: dict[str, Any] = {}
    for text in (inspect.getdoc(kind) or "" for kind in kinds if kind is not object):
        for name, word in _DOCUMENTED.findall(text):
            found.setdefault(name, _WORDS[word])
    return found


def _hint(annotation: Any, default: Any) -> Any:
    if annotation is not REQUIRED:
        return plain_hint(annotation)
    if isinstance(default, bool):
        return bool
    if isinstance(default, (int, float)):
        return float  # an integer default does not exclude fractions: the published EDSR files set res_scale=1 to 0.1
    if isinstance(default, str):
        return str | None
    if isinstance(default, (list, tuple)):
        return list[Any]
    return Any


def plain_hint(hint: Any) -> Any:
    """Return the part of a type hint that YAML values can have; Any if it does not consist of plain types.

    ``float | Tensor`` becomes ``float``, and ``tuple[float | Tensor, ...]`` becomes ``list[float]``.
    """
    if hint in _PLAIN or hint is types.NoneType or hint is Any:
        return hint
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Literal:
        return hint
    if origin is typing.Annotated:
        inner = plain_hint(arguments[0])
        for metadata in hint.__metadata__ if inner is not Any else ():
            inner = typing.Annotated[inner, metadata]
        return _checked(inner)
    if origin in (typing.Union, types.UnionType):
        members = [plain_hint(member) for member in arguments]
        known = [member for member in members if member is not Any]
        if Any in arguments or all(member is types.NoneType for member in known):
            return Any
        return _checked(functools.reduce(operator.or_, known))
    if hint in (list, tuple, dict) or origin in (dict,):
        return dict[str, Any] if dict in (hint, origin) else list[Any]
    if origin in (list, tuple) or _is_sequence(origin):
        inner = tuple(plain_hint(item) for item in arguments if item is not Ellipsis)
        if origin is tuple and Ellipsis not in arguments:
            return _checked(types.GenericAlias(tuple, inner))
        return _checked(types.GenericAlias(list, inner or (Any,)))
    return Any


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and origin.__name__ in ("Sequence", "Iterable", "Collection")


def _checked(hint: Any) -> Any:
    """Return the hint if msgspec can check it (it rejects some unions), otherwise Any."""
    try:
        msgspec.inspect.type_info(hint)
    except TypeError:
        return Any
    return hint


def _tree(code: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return None


def _use_of(function: Callable[..., Any], rest: str) -> str:
    """Return how a function uses its ``**rest``.

    Returns:
        ``nothing``; ``parent`` if it only passes them to the parent's constructor; ``reads`` for any other use, or if
        the source is not available.
    """
    tree = _tree(function)
    if tree is None:
        return "reads"
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == rest]
    passed = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("super(")
        for keyword in node.keywords
        if keyword.arg is None
    ]
    if not uses:
        return "nothing"
    return "parent" if all(use in passed for use in uses) else "reads"


class OptionKeys(msgspec.Struct, frozen=True):
    """The keys that a class reads from the option dict that its constructor gets.

    Attributes:
        names: the keys in its source.
        is_open: whether it may read other keys, because it computes keys or passes the dict on.
    """

    names: set[str]
    is_open: bool


@functools.lru_cache(maxsize=64)
def option_keys(kind: Any, option_name: str = "opt") -> OptionKeys:
    """Return the option keys that a class and its parents read.

    They are found in the source as ``opt["key"]``, ``opt.get("key")`` or ``"key" in opt``, where ``opt`` is a parameter
    or ``self.opt``.

    Args:
        kind: the class, or a function.
        option_name: the name of the dict in the source.
    """
    names: set[str] = set()
    is_open = False
    for part in kind.__mro__ if isinstance(kind, type) else (kind,):
        if part is object or getattr(part, "__module__", "").startswith(("torch.", "typing", "abc")):
            continue
        tree = _tree(part)
        if tree is None:
            is_open = True
            continue
        visitor = _OptionReads(option_name)
        visitor.visit(tree)
        names |= visitor.names
        is_open |= visitor.is_open
    return OptionKeys(names, is_open)


class _OptionReads(ast.NodeVisitor):
    """Collects the constant keys read from ``opt`` or ``self.opt``; notes whether there are uses it cannot follow."""

    def __init__(self, option_name: str) -> None:
        self.option_name = option_name
        self.names: set[str] = set()
        self.is_open = False

    def _is_options(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id == self.option_name
        return isinstance(node, ast.Attribute) and node.attr == self.option_name and isinstance(node.value, ast.Name)

    def _key(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.names.add(node.value)
        else:
            self.is_open = True

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._is_options(node.value):
            self._key(node.slice)
            self.visit(node.slice)
        else:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        right = node.comparators[0]
        if self._is_options(right) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            self._key(node.left)
        else:
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._is_options(node.value) and all(self._is_options(target) for target in node.targets):
            return  # self.opt = opt
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and self._is_options(function.value):
            if function.attr in ("get", "pop", "setdefault") and node.args:
                self._key(node.args[0])
                for argument in node.args[1:]:
                    self.visit(argument)
            else:
                self.is_open = True
        elif "super(" in ast.unparse(function) and all(self._is_options(argument) for argument in node.args):
            return  # super().__init__(opt): the parent's source is visited separately
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if self._is_options(node):
            self.is_open = True  # the dict is passed on

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._is_options(node):
            self.is_open = True
        else:
            self.generic_visit(node)
