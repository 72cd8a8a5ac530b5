"""Progress: nothing is lost, and lines stand where there is no terminal."""

from __future__ import annotations

import sys

import pytest

from mrcnn_jax.runtime import progress


def test_lines_come_at_intervals_and_at_the_end(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    assert list(progress.track("abcde", 5, "letters")) == list("abcde")
    assert capsys.readouterr().out.splitlines() == ["3/5 letters, 0.25 a second", "5/5 letters, 0.25 a second"]


@pytest.mark.parametrize("rich_is_there", [True, False])
def test_a_terminal_gets_a_bar_if_it_can(capsys, monkeypatch, rich_is_there):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    if not rich_is_there:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert list(progress.track(iter("abc"), 3, "letters")) == list("abc")
    printed = capsys.readouterr().out
    assert "letters" in printed
    assert ("3/3" in printed) != rich_is_there


def test_a_number_that_nobody_knows_is_left_out(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    assert list(progress.track("abcd", None, "letters")) == list("abcd")
    assert capsys.readouterr().out.splitlines() == ["3 letters, 0.25 a second"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert list(progress.track("abc", None, "letters")) == list("abc")
    assert "letters" in capsys.readouterr().out
