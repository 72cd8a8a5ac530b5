"""Products of windows, the formulation for TPUs, equal the gathers of single cells: any boxes, both ways.

So do the kernels in `benchmarks/pallas_roi_align.py`, interpreted on the CPU.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks/ is not in the package

from benchmarks import pallas_roi_align
from mrcnn_jax.config import RoIConfig
from mrcnn_jax.ops.roi import kernels, window_products
from mrcnn_jax.ops.roi.pooling import _axes, roi_levels
from mrcnn_jax.ops.roi.rois import RoIs

pytestmark = pytest.mark.medium

RNG = np.random.default_rng(0)
# Two levels of two images, larger than a window; values are exact in bfloat16.
EXTENT = 72
MAPS, COTANGENT = jax.tree.map(
    lambda shape: jnp.asarray(RNG.standard_normal(shape), jnp.bfloat16).astype(jnp.float32),
    (((2, 52, EXTENT, 2), (2, 26, 36, 2)), (7, 3, 2, 2)),
    is_leaf=lambda node: isinstance(node[0], int),
)
IMAGES = np.array([0, 0, 0, 0, 1, 1, 1], np.int32)
# As in test_align.py: rounding of coordinates, on two axes and two cells, times the extent.
TOLERANCE = 16 * np.finfo(np.float32).eps * EXTENT

THIN, HUGE, OUTSIDE, EMPTY = [3, 9, 285, 9.25], [-1e6, -1e6, 1e6, 1e6], [300, 300, 400, 500], [50, 60, 50, 90]
coordinate = st.integers(-40 * 8, 300 * 8).map(lambda n: n / 8)
side = st.one_of(
    st.integers(-10 * 8, 320 * 8).map(lambda n: n / 8), st.integers(0, 99).map(lambda n: n / 1024), st.just(1e5)
)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


BOXES = [THIN, HUGE, OUTSIDE, EMPTY, [0, 0, 288, 208], THIN[1::-1] + THIN[:1:-1], [0, 0, 0, 0]]
# The windows of each box and the next share rows 18 to 23 or columns 24 to 31, where both have gradients.
OVERLAPPING = [[0, 0, 40, 92], [0, 72, 40, 112], [0, 0, 124, 40], [100, 0, 140, 40], *BOXES[-3:]]


class Kernels(NamedTuple):
    """The kernels on a CPU."""

    interpret: Any

    def forward(self, *arguments):
        return pallas_roi_align.forward(*arguments, interpret=self.interpret)

    def backward(self, *arguments):
        return pallas_roi_align.backward(*arguments, interpret=self.interpret)


@functools.cache
def both(windows: Any, config: RoIConfig, dtype: Any) -> Any:
    """Compiled boxes (7, 4) -> results and gradients in `dtype` by windows, and in float32 by cells."""

    @jax.jit
    def run(boxes):
        rois = RoIs(boxes, roi_levels(boxes, max_level=3) - 2, jnp.asarray(IMAGES))
        axes = _axes(rois, MAPS, scales=(1 / 4, 1 / 8), bins=(3, 2), config=config)
        maps, cotangent = jax.tree.map(lambda leaf: leaf.astype(dtype), (MAPS, COTANGENT))
        ours = windows.forward(maps, rois, *axes), *windows.backward(maps, rois, *axes, cotangent)
        cells = kernels._forward_wide(MAPS, rois, *axes, side=1)
        return ours, (cells, *kernels._backward_wide(MAPS, rois, *axes, COTANGENT, side=1))

    return run


@pytest.mark.parametrize(
    ("windows", "config", "dtype"),
    [
        (window_products, RoIConfig(), jnp.float32),
        (window_products, RoIConfig(), jnp.bfloat16),
        (window_products, RoIConfig(sampling_ratio=2, aligned=False), jnp.float32),
        (window_products, RoIConfig(pooling="pool"), jnp.float32),
        (Kernels(interpret=True), RoIConfig(), jnp.float32),
        (Kernels(interpret=True), RoIConfig(), jnp.bfloat16),
    ],
    ids=["align", "bfloat16", "legacy", "pool", "kernels", "kernels-bfloat16"],
)
@hypothesis.settings(max_examples=25)
@hypothesis.example(boxes=BOXES)
@hypothesis.example(boxes=OVERLAPPING)
@hypothesis.example(boxes=[[0, 0, 100, 100]] * 7)  # the gradient fills its last turn with windows of the last RoI
@hypothesis.given(boxes=st.lists(box, min_size=7, max_size=7))
def test_equals_the_gathers_and_their_transpose(boxes, windows, config, dtype):
    with pytest.MonkeyPatch.context() as patch:  # two blocks, of which the second is padded
        patch.setattr(window_products, "FORWARD_BINS", 96)
        patch.setattr(window_products, "WINDOWS", 4)
        check(*both(windows, config, dtype)(np.float32(boxes)), dtype)


def test_copies_wait_for_each_other():
    """Copies of the simulated TPU take place when they are waited for."""
    simulated = Kernels(pltpu.InterpretParams(dma_execution_mode="on_wait"))
    for boxes in (BOXES, OVERLAPPING):
        check(*both(simulated, RoIConfig(), jnp.float32)(np.float32(boxes)), jnp.float32)


def check(ours, cells, dtype):
    for array, expected in zip(ours, map(np.asarray, cells), strict=True):
        assert array.dtype == dtype
        # Only results are rounded to bfloat16, by half a unit in the last place.
        rounding = np.ldexp(1.0, np.frexp(expected)[1] - 9) if dtype == jnp.bfloat16 else 0.0
        assert np.all(np.abs(np.float64(array) - expected) <= rounding + TOLERANCE * np.abs(MAPS[0]).max())
