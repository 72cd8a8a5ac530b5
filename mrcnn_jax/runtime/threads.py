"""Parallel work on a stream, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def map_on_threads(
    function: Callable[[A], T], arguments: Iterable[A], threads: int, ahead: int = 1
) -> Generator[T, None, None]:
    """Yield `function(argument)` for each argument, in order, computed on `threads` threads.

    At most `threads + ahead` arguments are in flight, which bounds memory.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="map_on_threads") as pool:
        in_flight: deque[Future[T]] = deque()
        try:
            for argument in arguments:
                in_flight.append(pool.submit(function, argument))
                if len(in_flight) >= threads + ahead:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:  # after an error or an early exit
            for future in in_flight:
                future.cancel()
