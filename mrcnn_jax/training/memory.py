"""How much memory a run takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

MEMORY = "peak_memory_gib"  # its name among the metrics
_GIB = 2**30


def peak_memory(devices: Sequence[Any]) -> dict[str, float]:
    """The most memory that was in use at once since the process began, in GiB, under the name `MEMORY`.

    That of the fullest of `devices` (jax.Device). A CPU's memory is the process's, so there it is the most that this
    process had, without its data workers. Empty where the system does not say.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    found = max(peaks, default=0) or (_of_process() if devices[0].platform == "cpu" else 0)
    return {MEMORY: found / _GIB} if found else {}


def _of_process() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
