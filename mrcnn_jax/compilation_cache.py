"""Where compiled programs are kept between runs. Commands turn this on; importing the package never does."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of everything that can be made again: $MRCNN_JAX_CACHE, or ~/.cache/mrcnn_jax."""
    return Path(os.environ.get("MRCNN_JAX_CACHE") or Path.home() / ".cache" / "mrcnn_jax")


def enable() -> None:
    """Keep compiled programs in `cache_root()/xla`, unless JAX has been told of another place."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))


def described() -> str:
    """In words, for the end of a sentence: where compiled programs are kept, if they are."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return f"; compiled programs are kept in {folder}" if folder else ""
