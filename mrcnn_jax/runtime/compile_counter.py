"""How many programs have been compiled."""

from __future__ import annotations

import functools
import threading

import jax


class Compilations(threading.local):
    """How many programs XLA compiled, or took from the persistent cache, for this thread."""

    count = 0


@functools.cache
def compilations() -> Compilations:
    """The one counter of this process. JAX may compile without tracing anew: for arguments in another place."""
    counter = Compilations()

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counter.count += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    return counter
