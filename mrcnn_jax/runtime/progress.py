"""How far a loop has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Yield `items` and show how many of `total` have come; `what` names them, as in "images evaluated".

    `total` is None where nobody knows it, of a camera's pictures for example.
    """
    if sys.stdout.isatty():
        try:
            from rich.progress import track as bar
        except ImportError:
            pass  # plain lines do as well
        else:
            return iter(bar(items, description=what, total=total))
    return _lines(items, total, what)


def _lines(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    start = spoken = time.perf_counter()
    of_total = "" if total is None else f"/{total}"
    for done, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if done == total or now - spoken > _SECONDS_BETWEEN_LINES:
            spoken = now
            print(f"{done}{of_total} {what}, {done / (now - start):.2f} a second", flush=True)
