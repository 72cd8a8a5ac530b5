"""Where compiled programs are kept between runs, and the compiler's memory, which is not kept.

Commands turn this on; importing the package never does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from pathlib import Path

_SHORT = 1.0  # seconds of a compilation that leaves nothing worth giving back


def cache_root() -> Path:
    """The folder of everything that can be made again: $MRCNN_JAX_CACHE, or ~/.cache/mrcnn_jax."""
    return Path(os.environ.get("MRCNN_JAX_CACHE") or os.path.join("~", ".cache", "mrcnn_jax")).expanduser()


def enable() -> None:
    """Keep compiled programs in `cache_root()/xla`, unless JAX has been told of another place; see `trim_heap` too."""
    import jax

    trim_heap()

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))


@functools.cache
def trim_heap() -> None:
    """From now on, give the memory that a compilation has used back to the system when it is done.

    The compiler frees it in pieces too small for the C library to do that by itself: a gigabyte after the training step
    of a large network. Nothing happens with other C libraries than glibc.
    """
    import jax

    trim = None
    with contextlib.suppress(OSError, AttributeError):
        trim = ctypes.CDLL(None).malloc_trim

    def after(event: str, duration_secs: float, **_: str | int) -> None:
        if trim is not None and event == "/jax/core/compile/backend_compile_duration" and duration_secs > _SHORT:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(after)


def described() -> str:
    """In words, for the end of a sentence: where compiled programs are kept, if they are."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return f"; compiled programs are kept in {folder}" if folder else ""
