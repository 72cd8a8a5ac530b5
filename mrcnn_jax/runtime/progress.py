"""Progress of a loop: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_LINE_INTERVAL = 10.0  # seconds


def track(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Yield `items` and display the progress.

    total: number of items; None if it is unknown, as for a camera.
    what: noun phrase for the items, such as "images evaluated".
    """
    if sys.stdout.isatty():
        from rich.progress import track as bar

        return iter(bar(items, description=what, total=total))
    return _print_lines(items, total, what)


def _print_lines(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    start = printed = time.perf_counter()
    of_total = "" if total is None else f"/{total}"
    for done, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if done == total or now - printed > _LINE_INTERVAL:
            printed = now
            print(f"{done}{of_total} {what}, {done / (now - start):.2f}/s", flush=True)
