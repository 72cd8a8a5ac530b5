"""What the readers of all formats share: arrays of plain numbers, and text from a file in messages."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from mrcnn_jax.errors import WeightsError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # the import also makes the name known to NumPy and safetensors


def plain_numbers(array: np.ndarray) -> np.ndarray:
    """Return `array` read-only and in the byte order of this machine, bfloat16 as float32.

    Raises WeightsError for anything but integers, bools and floating-point numbers.
    """
    if array.dtype == BFLOAT16:
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise WeightsError(f"it contains an array of {printable(array.dtype)}; only plain numbers are read")
    if array.dtype == bool:
        array = array.view(np.uint8) != 0  # NumPy gives wrong results for bools whose byte is neither 0 nor 1
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def printable(text: object) -> str:
    """Return content of a file as short ASCII text without control characters, for a message."""
    shortened = ascii(text)
    return shortened if len(shortened) <= 120 else shortened[:117] + "..."
