"""Progress displays: all items are yielded; lines without a terminal, a bar in one."""

from __future__ import annotations

import sys

from mrcnn_jax.runtime import progress


def test_lines_at_intervals_and_at_the_end(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    assert list(progress.track("abcde", 5, "letters")) == list("abcde")
    assert capsys.readouterr().out.splitlines() == ["3/5 letters, 0.25/s", "5/5 letters, 0.25/s"]


def test_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert list(progress.track(iter("abc"), 3, "letters")) == list("abc")
    printed = capsys.readouterr().out
    assert "letters" in printed
    assert "3/3" not in printed


def test_unknown_total(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    assert list(progress.track("abcd", None, "letters")) == list("abcd")
    assert capsys.readouterr().out.splitlines() == ["3 letters, 0.25/s"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert list(progress.track("abc", None, "letters")) == list("abc")
    assert "letters" in capsys.readouterr().out
