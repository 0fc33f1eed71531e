"""Reading option files: numbers, text, duplicate keys, tags, syntax errors, and files that are not option files."""

from __future__ import annotations

import itertools
import re
import string
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from safmn.errors import OptionError
from safmn.options import load_options
from safmn.options.differences import to_yaml
from safmn.options.problems import Problems
from safmn.options.reader import parse_value, read_document


def read(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "options.yml"
    path.write_text(text, encoding="utf-8")
    problems = Problems(path)
    document = read_document(path, problems)
    problems.lines = document.lines
    problems.raise_all()
    return document.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("!!float 1e-3", 1e-3),
        ("!!float 5000", 5000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1", -1),
        ("500_000", 500_000),
        ("0x10", 16),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("~", None),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("2024-01-02", "2024-01-02"),
        ("12:30", "12:30"),
        ("007", "007"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ("'{}x4'", "{}x4"),
        ("!!str 12", "12"),
        ("~/data", "~/data"),
        ("[0.9, 0.99]", [0.9, 0.99]),
    ],
)
def test_scalars_have_the_expected_value_and_type(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_comments_anchors_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = "\ufeffa: &betas [0.9, 0.99]  # shared\nb: *betas\n"
    assert read(tmp_path, text) == {"a": [0.9, 0.99], "b": [0.9, 0.99]}


def test_yaml_1_1_booleans_are_text_as_keys(tmp_path: Path) -> None:
    assert read(tmp_path, "no: 1\non: 2\nyes: 3\n") == {"no": 1, "on": 2, "yes": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", r"line 4: b\.c: is a duplicate key.* line 3\b"),
        ("a: 1\na: 1\n", r"line 2: a: is a duplicate key"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", r"line 2: b: the YAML tag !!python/object/apply:os\.s"),
        ("b: !!python/name:os.system ''\n", r"line 1: b: the YAML tag"),
        ("b: !mine 3\n", r"line 1: b: the YAML tag !mine"),
        ("b: !!set {a, b}\n", r"the YAML tag !!set"),
        ("b: !!timestamp 2024-01-02\n", r"the YAML tag !!timestamp"),
        ("b: !!binary aGk=\n", r"the YAML tag !!binary"),
        ("a: !!float fast\n", r"line 1: a: 'fast' is not a number"),
        ("a: !!int 1.5\n", r"a: '1\.5' is not a whole number"),
        ("a: !!bool maybe\n", r"a: 'maybe' is neither true nor false"),
        ("a: .nan\n", r"not a finite number"),
        ("a: -.inf\n", r"not a finite number"),
        ("a: 1e999\n", r"not a finite number"),
        (f"a: {'9' * 5000}\n", r"not a whole number"),
        ("1: a\n", r"line 1: a key must be text, got 1"),
        ("[a, b]: c\n", r"a key must be text, got a list"),
        ("a: &x [*x]\n", r"a\[0\]: an anchor that contains itself"),
    ],
)
def test_mistakes_name_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "options.yml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c\n", r"options\.yml, line 1, column 5: mapping values are not allowed here"),
        ("a: 1\n\tb: 2\n", r"options\.yml, line 2, column 1"),
        ("a: [1, 2\nb: 3\n", r"options\.yml, line 2"),
        ("a: 'x\n", r"options\.yml, line 2"),
        ("a: *nowhere\n", r"undefined alias"),
        ("a: 1\n---\nb: 2\n", r"options\.yml, line 2"),
        ("a: \x07\n", r"special characters are not allowed"),
        ("", r"is empty"),
        ("# nothing\n", r"is empty"),
        ("- a\n", r"a list, not a mapping"),
        ("just text\n", r"a single value, not a mapping"),
        ("[" * 2_000, r"nested too deeply"),
        ("- " * 2_000, r"nested too deeply"),
    ],
)
def test_text_that_is_not_an_option_file_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read(tmp_path, text)


def test_aliases_cannot_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(OptionError, match="aliases"):
        read(tmp_path, "\n".join(lines))


def test_null_given_twice_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "options.yml"
    path.write_text("path:\n  resume_state: ~\n  strict: true\n  resume_state: ~\n")
    problems = Problems(path)
    assert read_document(path, problems).data == {"path": {"resume_state": None, "strict": True}}
    problems.raise_all()
    problems.log_warnings()
    assert re.search(r"path\.resume_state: .*twice \(lines 2 and 4\).*null", caplog.text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yml").write_bytes(b"name: \xff\xfe\x00")
    (tmp_path / "weights.yml").write_bytes(b"x" * 1_000_001)
    cases = {
        "weights.yml": "1,000,001 bytes",
        "absent.yml": "no option file at",
        ".": "is a folder",
        "binary.yml": "is not UTF-8",
    }
    for name, message in cases.items():
        with pytest.raises(OptionError, match=message) as caught:
            read_document(tmp_path / name, Problems(name))
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("None", None),
        ("~", None),
        ("", None),
        ("True", True),
        ("no", "no"),
        ("[1, 2]", [1, 2]),
        ("{type: disk}", {"type": "disk"}),
        ("a b", "a b"),
        ("'1'", "1"),
        ("!!float 1e-3", 1e-3),
    ],
)
def test_override_values_have_the_expected_value_and_type(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["[1", "!!python/name:os.system ''", "{a: 1, a: 2}", "@x", "[" * 2_000])
def test_override_values_that_are_not_yaml_are_rejected(text: str) -> None:
    with pytest.raises(OptionError):
        parse_value(text)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable, max_size=12)
    | st.sampled_from(
        ["no", "on", "1e-4", "1e4", "~", "null", "0x1", ".5", "1_000", "2024-01-02", "true", "é", "12:30"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.printable, min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(data=st.dictionaries(st.text(string.printable, min_size=1, max_size=8), plain, min_size=1, max_size=4))
def test_written_data_reads_back_the_same(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    assert read(tmp_path_factory.mktemp("yaml"), to_yaml(data)) == data


def test_merge_keys(tmp_path: Path) -> None:
    """A mapping's own keys take precedence, then the first of a list. Anchors may contain merge keys."""
    path = tmp_path / "file.yml"
    path.write_text(
        "base: &base {a: 1, b: 1, c: 1}\n"
        "more: &more {<<: *base, b: 2, d: 2}\n"
        "one: {<<: *base, a: 3}\n"
        "two: {<<: [*more, *base], e: 3}\n"
        'text: {"<<": 1}\n'
    )
    problems = Problems(path)
    data = read_document(path, problems).data
    problems.raise_all()
    assert data["one"] == {"a": 3, "b": 1, "c": 1}
    assert data["two"] == {"a": 1, "b": 2, "c": 1, "d": 2, "e": 3} == yaml.safe_load(path.read_text())["two"]
    assert data["text"] == {"<<": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {<<: 3}", r"`<<` .*\(<<: \*name\), not a single value"),
        ("a: &a {<<: *a, b: 1}", "an anchor that contains itself"),
        ("x: &x {b: 1}\na: {<<: *x, c: 1, c: 2}", "duplicate key"),
        ("x: &x {[1]: 1}\na: {<<: *x}", "a key must be text"),
    ],
)
def test_wrong_merge_keys_are_reported(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yml"
    path.write_text(content)
    problems = Problems(path)
    read_document(path, problems)
    with pytest.raises(OptionError, match=message):
        problems.raise_all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a: 1\nname: "\\ud800x"\n', r"line 2: name: .*\\ud800"),
        ('a: 1\n"\\udc00": 1\n', r"line 2: .*\\udc00"),
        ('name: "a\\0b"\n', r"line 1: name: .*\\x00"),
        ("a: 1\nb: \x07\n", r"line 2: special characters .*U\+0007"),
    ],
)
def test_invalid_characters_are_reported_with_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.yml"
    path.write_text(text)

    def check() -> None:
        problems = Problems(path)
        read_document(path, problems)
        problems.raise_all()

    with pytest.raises(OptionError, match=message):
        check()


def test_a_surrogate_pair_is_read_as_one_character(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_text('name: "\\ud83d\\ude00"\n')
    problems = Problems(path)
    assert read_document(path, problems).data == {"name": "\U0001f600"}
    assert not len(problems)


@pytest.mark.parametrize("form", ["{{<<: [{}]}}", "[{}]"])
def test_anchors_that_expand_too_far_are_rejected(tmp_path: Path, form: str) -> None:
    letters = "abcdefghijklm"
    lines = ["a: &a {x: 1}"]
    lines += [f"{b}: &{b} " + form.format(",".join([f"*{a}"] * 9)) for a, b in itertools.pairwise(letters)]
    path = tmp_path / "f.yml"
    path.write_text("\n".join(lines))
    with pytest.raises(OptionError, match=r"aliases .*expand"):
        read_document(path, Problems(path))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero")
def test_an_endless_device_and_utf_16_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"/dev/zero has .*bytes"):
        read_document("/dev/zero", Problems(""))
    path = tmp_path / "f.yml"
    path.write_bytes("name: a\n".encode("utf-16"))
    with pytest.raises(OptionError, match=r"UTF-16.*UTF-8"):
        read_document(path, Problems(path))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r"a: C:\data\HR", r"C:\data\HR"),
        (r"a: 'C:\new\train'", r"C:\new\train"),
        (r'a: "C:\\new\\train"', r"C:\new\train"),
        (r'a: "C:/new/train"', "C:/new/train"),
        (r"a: \\server\share\x", r"\\server\share\x"),
        (r"a: {b: C:\a b, c: D:\y}", {"b": r"C:\a b", "c": r"D:\y"}),
        (r"a: [C:\a b\c.py, D:\y.py]", [r"C:\a b\c.py", r"D:\y.py"]),
    ],
)
def test_paths_of_windows(tmp_path: Path, text: str, path: Any) -> None:
    (tmp_path / "o.yml").write_bytes(b"\xef\xbb\xbf# by Notepad\r\n" + text.encode() + b"\r\nb:\r\n  - 1\r\n")
    assert read_document(tmp_path / "o.yml", Problems("o.yml")).data == {"a": path, "b": [1]}


def read_and_check(path: Path) -> None:
    problems = Problems(path)
    read_document(path, problems)
    problems.raise_all()


@pytest.mark.parametrize("path", [r"C:\data", r"C:\users\me", r"D:\x4", r"C:\new\train", r"c:\temp"])
def test_a_path_of_windows_in_double_quotes_is_explained(tmp_path: Path, path: str) -> None:
    (tmp_path / "o.yml").write_text(f'\na: "{path}"\n', encoding="utf-8")
    with pytest.raises(OptionError, match=r"line 2.*a backslash begins an escape: .*'C:\\data'.*\"C:/data\""):
        read_and_check(tmp_path / "o.yml")
    with pytest.raises(OptionError, match="a backslash begins an escape"):
        parse_value(f'"{path}"')


@pytest.mark.parametrize("path", [r"C:\x", r"C:\data\new HR", r"\\server\x", "D:/a=b"])
def test_a_path_of_windows_in_an_override(tmp_path: Path, path: str) -> None:
    content = tiny_run.options(tmp_path)
    option_file = tiny_run.write_options(tmp_path, content)
    entry = f"datasets:train:dataroot_gt={path}"
    assert load_options(option_file, mode="train", overrides=[entry]).datasets["train"]["dataroot_gt"] == path
