"""JAX's persistent compilation cache, and release of the compiler's memory.

Commands enable them; importing the package does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools

from mrcnn_jax.runtime import files

_MIN_SECONDS = 1.0  # shorter compilations leave too little memory to release


def enable() -> None:
    """Cache compiled programs in `files.cache_root()/xla`, unless JAX has another cache folder; call `trim_heap`."""
    import jax

    trim_heap()

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(files.cache_root() / "xla"))


@functools.cache
def trim_heap() -> None:
    """Return the compiler's free memory to the operating system after each compilation from now on.

    It consists of pieces that are too small for glibc to return by itself: a gigabyte after the training step of a
    large network. Does nothing with C libraries other than glibc.
    """
    import jax

    trim = None
    with contextlib.suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        if trim is not None and event == "/jax/core/compile/backend_compile_duration" and duration_secs > _MIN_SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listener)


def describe() -> str:
    """Return a clause with the folder of the cache, for the end of a message; empty without a cache."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return f"; compiled programs are cached in {folder}" if folder else ""
