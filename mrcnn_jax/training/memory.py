"""Peak memory of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

PEAK_MEMORY = "peak_memory_gib"  # name of the metric
_GIB = 2**30


def peak_memory(devices: Sequence[Any]) -> dict[str, float]:
    """Return {PEAK_MEMORY: GiB}, the peak memory since the start of the process; {} if unknown.

    It is that of the fullest of `devices` (jax.Device). On CPU it is that of this process, without its data workers.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    peak = max(peaks, default=0) or (_process_peak() if devices[0].platform == "cpu" else 0)
    return {PEAK_MEMORY: peak / _GIB} if peak else {}


def _process_peak() -> int:
    """Return the peak resident set size in bytes; 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
