"""Tests of run-length decoding: equal to pycocotools for valid RLE, and an error for invalid RLE."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as coco_mask
from support.samples import rle_of

from mrcnn_jax.data import rle

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60)
@given(size=SIZES, seed=st.integers(0, 2**32), full=st.floats(0, 1), cuts=st.tuples(*[st.floats(0, 1)] * 4))
def test_runs_and_crops_are_those_of_pycocotools(
    size: tuple[int, int], seed: int, full: float, cuts: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(seed)
    # Stripes across make long runs, which the packing stores differently from short ones.
    mask = (rng.random(size) < full) | (rng.random((1, size[1])) < full / 2)
    height, width = size
    x0, x1 = sorted(round(cut * width) for cut in cuts[:2])
    y0, y1 = sorted(round(cut * height) for cut in cuts[2:])
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    plain = rle_of(mask, compressed=False)
    for encoded in (packed, {**packed, "counts": packed["counts"].decode()}, plain):
        lengths = rle.run_lengths(encoded)
        assert lengths.tolist() == plain["counts"]
        np.testing.assert_array_equal(rle.crop(lengths, height, (x0, y0, x1, y1)), mask[y0:y1, x0:x1])


def test_long_runs_are_unpacked() -> None:
    """Runs and differences of several groups of bits, of both signs."""
    mask = np.zeros((3000, 3000), bool)
    mask[100:2900, 7] = mask[5, 900:910] = mask[:, 2000:2600] = True
    packed = rle_of(mask)
    assert rle.run_lengths(packed).tolist() == rle_of(mask, compressed=False)["counts"]


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "o",  # a group that says another follows, and none does
        "~~~~~~~~~~~~~~~~0",  # beyond the alphabet
        "oooooooooooo0",  # a number of twelve groups
        "é",
        b"\xff",
        [12, -3, 11],
        [12.0, 8.0],
        [True] * 20,
        [[12, 8]],
        ["12", "8"],
        [12, 9],
        [20.5],
        {"12": 8},
        None,
        [2**70, 20],
        [2**63, 2**63, 20],  # a sum of 20 in 64 bits
    ],
)
def test_invalid_rle_is_an_error(counts: Any) -> None:
    with pytest.raises(ValueError, match=r"its (runs|counts)|codec can't encode"):
        rle.run_lengths({"size": [4, 5], "counts": counts})
