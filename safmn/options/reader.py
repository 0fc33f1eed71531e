"""Read an option file: from text to plain dicts, lists, strings and numbers, with the line of every key.

Where YAML 1.1 surprises, the reader follows the core schema of YAML 1.2: ``1e-4`` is a number; only ``true`` and
``false`` (also ``True``, ``TRUE``, ...) are booleans, so ``no``, ``on`` and ``yes`` stay text; dates stay text.
Anchors, aliases and merge keys (``<<: *anchor``) work. Tags other than ``!!float``, ``!!int``, ``!!bool``, ``!!str``
and ``!!null`` are errors, so no tag can run code.

PyYAML's Python parser is used instead of libyaml's, because libyaml overflows the C stack on deep nesting, which kills
the process. Option files are too short for libyaml's speed to matter.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from safmn.errors import OptionError, did_you_mean
from safmn.options.problems import KeyPath, Problems
from safmn.options.shipped import shipped_files

_PREFIX = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
# Tags of plain scalars, in the order in which they are tried: (tag, pattern, possible first characters, for PyYAML).
RESOLVERS = (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
)
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character; YAML can write one as "\\ud800"
_INVALID = re.compile("[\0\ud800-\udfff]")  # not allowed in file names (NUL) or not encodable as UTF-8
_DRIVE = re.compile(r'"[A-Za-z]:\\(?!\\)')
_BACKSLASH = (
    "In double quotes a backslash begins an escape: write a path of Windows without quotes or in single quotes "
    "('C:\\data'), or with slashes (\"C:/data\")"
)
_MAX_BYTES = 1_000_000
_MAX_NODES = 100_000  # aliases can expand a small file without limit


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the resolvers above. It only composes nodes; this module turns them into values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own form


for _tag, _pattern, _first in RESOLVERS:
    Loader.add_implicit_resolver(_PREFIX + _tag, _pattern, _first)


class Document:
    """The contents of an option file.

    Attributes:
        data: the top-level mapping.
        lines: line number (from 1) of every key and list item, by key path.
    """

    def __init__(self, data: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self.data = data
        self.lines = lines


def read_document(path: str | Path, problems: Problems) -> Document:
    """Read an option file.

    Mistakes that leave the rest of the file readable (duplicate keys, forbidden tags) are added to ``problems``.

    Raises:
        OptionError: the file cannot be read, is not YAML, or is not a mapping. The message names the file and, for YAML
            errors, the line.
    """
    text = _read_text(Path(path))
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is None:
            raise OptionError(f"{path} is empty. It must be a YAML mapping; `safmn options train_x4` prints one.")
        if not isinstance(node, yaml.MappingNode):
            raise OptionError(f"{path} contains {_kind(node)}, not a mapping. An option file starts with `name: ...`.")
        builder = _Builder(problems)
        data = builder.value(node, ())
    except yaml.YAMLError as error:
        raise OptionError(f"{path}{_syntax_error(error, text)}") from error
    except RecursionError:
        raise OptionError(f"{path} is nested too deeply to be an option file.") from None
    return Document(data, builder.lines)


def parse_value(text: str) -> Any:
    """Return the value of an override, given as YAML: ``1e-4``, ``true``, ``[1, 2]``, ``{type: disk}`` or text.

    ``None``, in any case, is null.

    Raises:
        OptionError: the text is not YAML.
    """
    if text.lower() == "none":  # null in BasicSR's --force_yml
        return None
    problems = Problems("")
    try:
        node = yaml.compose(text, Loader=Loader)
        value = None if node is None else _Builder(problems).value(node, ())
    except yaml.YAMLError as error:
        raise OptionError(
            f"{text!r} is not a YAML value{_syntax_error(error, text)}. Quote it if it is text."
        ) from error
    except RecursionError:
        raise OptionError("the value is nested too deeply") from None
    problems.raise_first()
    return value


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)  # limited, because a device such as /dev/zero never ends
    except FileNotFoundError:
        suggestion = did_you_mean(path.stem, shipped_files())
        raise OptionError(f"no option file at {path}.{suggestion} `safmn options` lists those of SAFMN.") from None
    except IsADirectoryError:
        raise OptionError(f"{path} is a folder; give the option file inside it.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OptionError(f"cannot read the option file {path}: {error}") from None
    if len(content) > _MAX_BYTES:
        size = max(path.stat().st_size, len(content))  # a device has size 0
        raise OptionError(f"{path} has {size:,} bytes, too many for an option file.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise OptionError(f"{path} is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{path} is not UTF-8 text (byte {error.start}); if it is an option file, save it as UTF-8"
        ) from None


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _syntax_error(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f", line {line}: special characters are not allowed in YAML (U+{ord(text[error.position]):04X})"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if "escape" in problem:  # an unknown escape character, or wrong digits after \\x, \\u or \\U
        problem += f". {_BACKSLASH}"
    return f"{where}: {problem}"


class _Builder:
    """Turns composed nodes into values and records lines. It accepts only the tags of JSON's types."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.lines: dict[KeyPath, int] = {}
        self._open: set[int] = set()  # ids of the collections being built, to detect one that contains itself
        self._count = 0

    def value(self, node: yaml.Node, where: KeyPath) -> Any:
        self._count_in(1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, where)
        if id(node) in self._open:
            self._note(where, node, "an anchor that contains itself")
            return None
        self._open.add(id(node))
        try:
            return self._mapping(node, where) if isinstance(node, yaml.MappingNode) else self._sequence(node, where)
        finally:
            self._open.discard(id(node))

    def _count_in(self, nodes: int) -> None:
        self._count += nodes
        if self._count > _MAX_NODES:
            raise yaml.YAMLError("the aliases in this file expand to more than an option file can hold")

    def _note(self, where: KeyPath, node: yaml.Node, message: str) -> None:
        self.problems.add(where, message, line=node.start_mark.line + 1)

    def _sequence(self, node: yaml.Node, where: KeyPath) -> list[Any]:
        self._check_tag(node, where, "seq")
        items = []
        for index, child in enumerate(node.value):
            path = (*where, index)
            self.lines[path] = child.start_mark.line + 1
            items.append(self.value(child, path))
        return items

    def _mapping(self, node: yaml.MappingNode, where: KeyPath) -> dict[str, Any]:
        self._check_tag(node, where, "map")
        values: dict[str, Any] = {}
        for key_node, child in self._merged(node, where):
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _PREFIX + "str":
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else _kind(key_node)
                self._note(where, key_node, f"a key must be text, got {shown}; put it in quotes")
                continue
            key = self._text(key_node, where)
            path = (*where, key)
            first_line = self.lines.get(path)
            self.lines[path] = key_node.start_mark.line + 1
            value = self.value(child, path)
            if key in values:
                self._duplicate(path, key_node, first_line, values[key], value)
            values[key] = value
        return values

    def _merged(self, node: yaml.MappingNode, where: KeyPath) -> list[tuple[yaml.Node, yaml.Node]]:
        """Return the entries of a mapping, after those merged by ``<<: *anchor`` or ``<<: [*a, *b]``.

        The mapping's own keys take precedence, then those of the first mapping in the list (as PyYAML implements YAML
        1.1's merge key).
        """
        self._count_in(len(node.value))
        own = [(key, child) for key, child in node.value if not _is_merge(key)]
        taken = _names(own)
        brought: list[tuple[yaml.Node, yaml.Node]] = []
        for key, child in node.value:
            if not _is_merge(key):
                continue
            for source in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                if not isinstance(source, yaml.MappingNode):
                    self._note(where, key, f"`<<` needs the anchor of a section (<<: *name), not {_kind(source)}")
                    continue
                if id(source) in self._open:
                    self._note(where, key, "an anchor that contains itself")
                    continue
                self._open.add(id(source))
                entries = [entry for entry in self._merged(source, where) if not taken & _names([entry])]
                self._open.discard(id(source))
                taken |= _names(entries)
                brought += entries
        return brought + own

    def _duplicate(self, path: KeyPath, node: yaml.Node, first_line: int | None, old: Any, new: Any) -> None:
        # The published SAFMN files for GAN training give `resume_state: ~` twice, which is harmless.
        if old is None and new is None:
            line = node.start_mark.line + 1
            self.problems.warn(path, f"is given twice (lines {first_line} and {line}), both times as null")
        else:
            self._note(path, node, f"is a duplicate key; it is on line {first_line} as well. Remove one of them")

    def _check_tag(self, node: yaml.Node, where: KeyPath, expected: str) -> None:
        if node.tag != _PREFIX + expected:
            self._note(where, node, f"the YAML tag {_shown(node.tag)} is not allowed in an option file")

    def _text(self, node: yaml.ScalarNode, where: KeyPath) -> str:
        """Return the text of a scalar. A surrogate pair, from JSON escapes, becomes one character."""
        text: str = node.value
        if node.style == '"' and _DRIVE.match(_source_of(node)):  # else "C:\new" would be a line break and "ew"
            self._note(where, node, f"is a path of Windows in double quotes. {_BACKSLASH}")
        if _SURROGATE.search(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if found := _INVALID.search(text):
            character = ascii(found[0])[1:-1]
            self._note(where, node, f"contains {character}, which is not allowed in text or in a folder or file name")
            return _INVALID.sub("?", text)  # so that later checks can use the text
        return text

    def _scalar(self, node: yaml.ScalarNode, where: KeyPath) -> Any:
        tag = node.tag.removeprefix(_PREFIX)
        if tag == "str":
            return self._text(node, where)
        if tag not in ("null", "bool", "int", "float"):
            self._note(where, node, f"the YAML tag {_shown(node.tag)} is not allowed in an option file")
            return None
        try:
            return _convert(tag, node.value)
        except ValueError as error:
            self._note(where, node, str(error))
            return None


def _source_of(node: yaml.Node) -> str:
    """The text that a node was read from, quotes included."""
    start, end = node.start_mark, node.end_mark
    assert start.buffer is not None  # the loader reads text, not a stream
    return start.buffer[start.pointer : end.pointer]


def _is_merge(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None


def _names(entries: Sequence[tuple[yaml.Node, yaml.Node]]) -> set[str]:
    return {key.value for key, _ in entries if isinstance(key, yaml.ScalarNode)}


def _shown(tag: str) -> str:
    return tag.replace(_PREFIX, "!!")


def _convert(tag: str, text: str) -> Any:
    """Return the value of a scalar with the tag null, bool, int or float.

    Raises:
        ValueError: the text does not fit the tag.
    """
    if tag == "null":
        if not _NULL.match(text):
            raise ValueError(f"{text!r} is not null")
        return None
    if tag == "bool":
        if not _BOOL.match(text):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    if tag == "int":
        if len(text) > 30 or not _INT.match(text):
            raise ValueError(f"{text[:40]!r} is not a whole number")
        return int(text.replace("_", ""), 0)
    if not (_FLOAT.match(text) or (_INT.match(text) and text[:2] not in ("0x", "0o"))):
        raise ValueError(f"{text[:40]!r} is not a number")
    number = math.nan if text[-1] in "fFnN" else float(text.replace("_", ""))  # .inf and .nan end in a letter
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]!r} is not a finite number")
    return number
