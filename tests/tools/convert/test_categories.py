"""Category names of mask values, from a list or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrcnn_jax.errors import DataError
from mrcnn_jax.tools.convert.categories import CategoryNames, parse, single_category


def test_list_counts_from_1() -> None:
    assert parse("cat, dog ,Straßenbahn") == CategoryNames({1: "cat", 2: "dog", 3: "Straßenbahn"})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"300": "b", "7": "a"}', CategoryNames({300: "b", 7: "a"})),
        ("a.json", '\ufeff["a", "b"]', CategoryNames({1: "a", 2: "b"})),
        ("a.json", '{"0": "Background", "1": "a"}', CategoryNames({1: "a"})),
        ("a.json", '{"#0000ff": "a", "#000000": "background"}', CategoryNames({255: "a"}, colors=True)),
        ("a.txt", "7 traffic light\n300 b\n", CategoryNames({7: "traffic light", 300: "b"})),
        ("a.txt", "traffic light\n2nd b\n", CategoryNames({1: "traffic light", 2: "2nd b"})),
        ("a.txt", "#00ff00 a\n#0000ff b\n", CategoryNames({0xFF00: "a", 0xFF: "b"}, colors=True)),
    ],
)
def test_files(name: str, content: str, expected: CategoryNames, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert parse(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "cannot be read as values and names"),
        ("a.json", '"cat"', "neither a list of names nor an object"),
        ("a.json", '{"1": 2}', "neither a list of names nor an object"),
        ("a.json", "[1, 2]", "neither a list of names nor an object"),
        ("a.json", "[]", ": no names"),
        ("a.txt", "", ": no names"),
        ("a.json", '{"1": "a", "1": "b"}', "1 and its name 'b': values and names must be unique"),
        ("a.json", '{"1": "a", "2": "a"}', "2 and its name 'a': values and names must be unique"),
        ("a.json", '{"1": " "}', "and not empty"),
        ("a.json", '{"0": "road"}', "0 is named 'road', but values count from 1"),
        ("a.json", '{"-1": "road"}', "-1 is named 'road'"),
        ("a.json", '{"one": "road"}', "'one' is not a whole number"),
        ("a.json", '{"#00ff00": "a", "7": "b"}', "'7' is not a color, such as #ff0080"),
        ("a.json", '{"#xyzxyz": "a"}', "'#xyzxyz' is not a color"),
    ],
)
def test_invalid_files_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        parse(str(tmp_path / name))
    assert message in str(error.value)


def test_missing_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        parse("nowhere.json")


def test_single_category() -> None:
    assert single_category(None, "files") == {1: "object"}
    assert single_category(CategoryNames({7: "cell"}), "files") == {1: "cell"}
    with pytest.raises(DataError, match="names cat, dog; did you mean classes"):
        single_category(parse("cat,dog"), "instances")
