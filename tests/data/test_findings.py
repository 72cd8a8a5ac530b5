"""Tests of the messages about findings: file, count, items and advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrcnn_jax.data.findings import Problem, Refusal, describe_problems, describe_refusals, raise_refusals
from mrcnn_jax.errors import DataError, format_list, format_value

PATH = Path("coco.json")


@pytest.mark.parametrize(
    ("most", "text"),
    [(None, "0, 1, 2, 3"), (5, "0, 1, 2, 3"), (4, "0, 1, 2, 3"), (3, "0, 1, 2, and 1 more"), (0, "and 4 more")],
)
def test_listing_names_up_to_the_given_count(most: int | None, text: str) -> None:
    assert format_list(range(4), most) == text


def test_listing_names_twenty_by_default() -> None:
    assert format_list(range(21)).endswith("19, and 1 more")
    assert len(format_list(range(1000), None).split(", ")) == 1000
    assert format_list([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("kite.jpg", "kite.jpg"),
        ("Drachen über dem See.jpg", "Drachen über dem See.jpg"),
        ("two\nlines", r"'two\nlines'"),
        ("\ud800", r"'\ud800'"),
        ("x" * 81, "x" * 77 + "..."),
        (7, "7"),
        (1.5, "1.5"),
        (10**100, "1" + "0" * 76 + "..."),
        (float("nan"), "NaN"),
        (True, "true"),
        (None, "null"),
        ([[1, 2]], "a list"),
        ({"a": 1}, "an object"),
    ],
)
def test_values_of_a_file_are_shown_short_and_on_one_line(value: object, text: str) -> None:
    assert format_value(value) == text
    assert format_value(value).encode()


def refusals() -> list[Refusal]:
    lost = [Refusal("images that are not there", f"{i}.jpg (id {i})", "add them", i) for i in range(25)]
    other = Refusal("unknown category ids", "annotation 3 (image 1) has category 7", "add it", 1, 3)
    turned = Refusal(
        "images that are not there", "99.jpg (id 99)", "turn it", 99
    )  # the same, but to be helped otherwise
    return [lost[0], other, *lost[1:], turned]


def test_refusals_of_a_kind_share_a_line() -> None:
    lines = describe_refusals(PATH, refusals(), 2)
    assert lines == [
        "coco.json: images that are not there (25): 0.jpg (id 0), 1.jpg (id 1), and 23 more; add them",
        "coco.json: unknown category ids (1): annotation 3 (image 1) has category 7; add it",
        "coco.json: images that are not there (1): 99.jpg (id 99); turn it",
    ]
    assert all(f"{i}.jpg (id {i})" in describe_refusals(PATH, refusals(), None)[0] for i in range(25))


def test_training_and_check_describe_refusals_equally() -> None:
    with pytest.raises(DataError) as error:
        raise_refusals(PATH, refusals())
    assert str(error.value).splitlines() == describe_refusals(PATH, refusals(), 20)
    assert "19.jpg (id 19), and 5 more; add them" in str(error.value)
    raise_refusals(PATH, [])


def test_problems_of_a_kind_share_a_line() -> None:
    problems = [Problem("box without area", i, i // 2) for i in range(23)]
    problems.insert(1, Problem("no segmentation", 4, 2))
    assert describe_problems(problems, 2) == [
        "box without area in 23 annotations: 0 (image 0), 1 (image 0), and 21 more",
        "no segmentation in 1 annotation: 4 (image 2)",
    ]
    assert describe_problems(problems)[0].endswith("19 (image 9), and 3 more")
    assert describe_problems(problems, None)[0].endswith("22 (image 11)")
    assert describe_problems([]) == []
