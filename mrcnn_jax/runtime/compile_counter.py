"""Counter of XLA compilations."""

from __future__ import annotations

import functools
import threading

import jax


class CompileCounter(threading.local):
    """Number of programs that this thread has compiled or loaded from the persistent cache."""

    count = 0


@functools.cache
def get_counter() -> CompileCounter:
    """Return the counter of this process, which counts from the first call.

    It also counts compilations without a new trace, such as for arguments on another device.
    """
    counter = CompileCounter()

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counter.count += 1

    jax.monitoring.register_event_duration_secs_listener(listener)
    return counter
