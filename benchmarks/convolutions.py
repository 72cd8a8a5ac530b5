"""Time of grouped and depthwise convolutions, forward and gradients, compared with XLA's grouped convolution.

    python -m benchmarks.convolutions [--gradients-of-xla]

The shapes are those of ResNeXt-101-32x8d at 800 x 1088 and of EfficientNet-Lite0 at 640 x 640, 4 images. The gradients
of XLA's convolution take tens of seconds on a CPU. Prints a Markdown table of milliseconds, minimum of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from mrcnn_jax.ops.xla_cpu.conv import conv2d


class Convolution(NamedTuple):
    """A convolution with a square kernel."""

    name: str
    shape: tuple[int, int, int, int]  # B, H, W, channels
    groups: int
    kernel: int = 3
    stride: int = 1


CASES = [
    Convolution("X101 res2", (1, 200, 272, 256), 32),
    Convolution("X101 res3", (1, 100, 136, 512), 32),
    Convolution("X101 res4", (1, 50, 68, 1024), 32),
    Convolution("X101 res5", (1, 25, 34, 2048), 32),
    Convolution("Lite0 block 1", (4, 320, 320, 96), 96, stride=2),
    Convolution("Lite0 block 2", (4, 160, 160, 144), 144),
    Convolution("Lite0 block 3", (4, 160, 160, 144), 144, kernel=5, stride=2),
    Convolution("Lite0 block 10", (4, 40, 40, 672), 672, kernel=5),
    Convolution("Lite0 block 13", (4, 20, 20, 1152), 1152, kernel=5),
]


def padding(case: Convolution) -> tuple[int, int]:
    """Return TensorFlow's "SAME" padding for sizes divisible by the stride."""
    total = case.kernel - case.stride
    return total // 2, total - total // 2


def xla_conv2d(case: Convolution, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Apply the convolution as one operation of XLA."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (case.stride, case.stride),
        (padding(case), padding(case)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=case.groups,
    )


def gradients(function: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
    """Return the gradients with respect to `x` and `kernel`."""
    return jax.vjp(function, x, kernel)[1](cotangent)


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the minimum of three calls after the one that compiles."""
    compiled, seconds = jax.jit(function), []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradients-of-xla", action="store_true")
    arguments = parser.parse_args()
    print("| layer | maps | kernel | groups | forward | XLA's | gradients | XLA's |\n|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for case in CASES:
        channels = case.shape[-1]
        x = jax.device_put(rng.standard_normal(case.shape, np.float32))
        shape = (case.kernel, case.kernel, channels // case.groups, channels)
        kernel = jax.device_put(rng.standard_normal(shape, np.float32))
        ours = partial(conv2d, stride=case.stride, padding=padding(case), groups=case.groups)
        reference = partial(xla_conv2d, case)
        cotangent = ours(x, kernel)
        times = [milliseconds(ours, x, kernel), milliseconds(reference, x, kernel)]
        times.append(milliseconds(partial(gradients, ours), x, kernel, cotangent))
        if arguments.gradients_of_xla:
            times.append(milliseconds(partial(gradients, reference), x, kernel, cotangent))
        sizes = "x".join(map(str, case.shape))
        kind = f"{case.kernel}x{case.kernel}, stride {case.stride}"
        columns = " | ".join(f"{t:.1f}" for t in times) + (" |" if arguments.gradients_of_xla else " | - |")
        print(f"| {case.name} | {sizes} | {kind} | {case.groups} | {columns}", flush=True)


if __name__ == "__main__":
    main()
