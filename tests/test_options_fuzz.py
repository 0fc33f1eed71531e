"""Random mistakes in option files raise an OptionError that names the key, and never another exception."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_options import OPTION_FILES, for_testing, for_training

from safmn.errors import OptionError
from safmn.options import load_options
from safmn.options.differences import to_yaml
from safmn.options.problems import KeyPath, Problems, show_path
from safmn.options.reader import read_document

FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


FILES = ("train_x4", "train_real_x2", "train_real_gan_ldl_x4", "test_x2", "test_real_x4", "train", "test")


@functools.cache
def valid(name: str) -> dict[str, Any]:
    """Return the contents of a valid file. Do not change them: they are cached."""
    paths = {path.stem: path for path in OPTION_FILES}
    if name in paths:
        return read_document(paths[name], Problems(name)).data
    return for_training() if name == "train" else for_testing()


def sections(value: Any, where: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the key paths of all sections."""
    if isinstance(value, dict):
        yield where
        for key, inner in value.items():
            yield from sections(inner, (*where, key))


def leaves(value: Any, where: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the key paths and values of everything that is not a section."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*where, key))
    else:
        yield where, value


def at(data: dict[str, Any], where: KeyPath) -> Any:
    for key in where:
        data = data[key]
    return data


def mistakes(folder: Path, name: str, data: dict[str, Any]) -> str | None:
    """Load the data and return the message of the OptionError, or None. Other exceptions are raised."""
    path = folder / "options.yml"
    path.write_text(to_yaml(data), encoding="utf-8")
    try:
        load_options(path, mode="test" if name.startswith("test") else "train")
    except OptionError as error:
        return str(error)
    return None


@FUZZ
@given(choice=st.data(), key=st.text("abcdefghij_", min_size=4, max_size=12).map("zz".__add__))
def test_an_unknown_key_at_any_depth_is_named(choice: st.DataObject, key: str, tmp_path: Path) -> None:
    name = choice.draw(st.sampled_from(FILES))
    where = choice.draw(st.sampled_from([path for path in sections(valid(name)) if "layer_weights" not in path]))
    data = copy.deepcopy(valid(name))
    values = [1, "text", [1], {"type": "X"}]
    if where != ("val", "metrics"):  # null there takes a metric out
        values.append(None)
    at(data, where)[key] = choice.draw(st.sampled_from(values))
    message = mistakes(tmp_path, name, data)
    assert message is not None
    assert show_path((*where, key)) in message


WRONG: dict[type, list[Any]] = {
    bool: ["y", 2, [True], {"a": 1}],
    int: ["12", 1.5, [1], {"a": 1}, True],
    float: ["1e-3", [0.1], {"a": 1}, True],
    str: [5, 2.5, ["a"], {"a": 1}],
    list: ["text", {"a": 1}, 5],
}


@FUZZ
@given(choice=st.data())
def test_the_key_of_a_value_of_the_wrong_type_is_named(choice: st.DataObject, tmp_path: Path) -> None:
    name = choice.draw(st.sampled_from(FILES))
    known = [(path, value) for path, value in leaves(valid(name)) if value is not None and "layer_weights" not in path]
    where, value = choice.draw(st.sampled_from(known))
    wrong = choice.draw(st.sampled_from(WRONG[type(value)]))
    data = copy.deepcopy(valid(name))
    at(data, where[:-1])[where[-1]] = wrong
    message = mistakes(tmp_path, name, data)
    if message is None:  # a key with an integer in the file may accept any number, and folders may be several
        assert (type(value), type(wrong)) == (int, float) or (str(where[-1]).startswith("dataroot") and wrong == ["a"])
    else:
        assert show_path(where) in message


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(choice=st.data(), value=anything)
def test_any_value_anywhere_loads_or_raises_option_error(choice: st.DataObject, value: Any, tmp_path: Path) -> None:
    name = choice.draw(st.sampled_from(FILES))
    places = [path for path, _ in leaves(valid(name))] + [path for path in sections(valid(name)) if path]
    where = choice.draw(st.sampled_from(places))
    data = copy.deepcopy(valid(name))
    at(data, where[:-1])[where[-1]] = value
    message = mistakes(tmp_path, name, data)
    assert message is None or str(tmp_path) in message


@FUZZ
@given(content=st.text(max_size=60) | st.text("a:-[]{}&*!|>'\"#%@`,? \n\t1~", max_size=40))
def test_any_text_raises_option_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "options.yml"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(OptionError):
        load_options(path, mode="train")


@FUZZ
@given(entry=st.text(max_size=30) | st.text("abc:=[]{}!~1.e-'\" ", max_size=20).map("train:total_iter=".__add__))
def test_any_override_is_applied_or_raises_option_error(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "options.yml"
    path.write_text(to_yaml(for_training()), encoding="utf-8")
    try:
        load_options(path, mode="train", overrides=[entry])
    except OptionError as error:
        message = str(error)
    else:
        return
    assert f"--force_yml {entry}" in message
