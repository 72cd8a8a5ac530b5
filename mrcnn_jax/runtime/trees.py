"""Leaves of pytrees by name."""

from __future__ import annotations

from typing import Any

import jax


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by their paths, such as "params/backbone/stem/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
