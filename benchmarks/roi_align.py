"""Time of multi-level ROIAlign and of its gradient; beside torchvision's where that can be imported.

Run `python -m benchmarks.roi_align`; `--small` times what the quickstart trains on. Implementations take turns, so that
another program on the machine slows all of them alike; medians and minima are printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mrcnn_jax.ops.roi_align import multilevel_roi_align

STRIDES = (4, 8, 16, 32)


class Case(NamedTuple):
    """What is pooled: images of a shape, channels, boxes in each image."""

    name: str
    images: int
    shape: tuple[int, int]
    channels: int
    boxes: int


LARGE = (Case("800x1344", 1, (800, 1344), 256, 512), Case("800x1344, 2 images", 2, (800, 1344), 256, 512))
SMALL = (Case("128x128, 16 images", 16, (128, 128), 64, 64),)
MODES = {"2 samples": (2, False), "adaptive": (0, True)}  # torchvision's sampling and Detectron2's


def make(case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """Random maps (B, H_l, W_l, Ch) and boxes (B, R, 4) whose sides are spread evenly in the logarithm."""
    rng = np.random.default_rng(0)
    height, width = case.shape
    maps = [
        rng.standard_normal((case.images, height // s, width // s, case.channels), dtype=np.float32) for s in STRIDES
    ]
    side = np.exp(rng.uniform(np.log(0.02 * height), np.log(0.9 * height), (case.images, case.boxes)))
    ratio = np.exp(rng.uniform(np.log(0.4), np.log(2.5), side.shape) / 2)
    w, h = np.minimum(side * ratio, width - 1), np.minimum(side / ratio, height - 1)
    x, y = rng.uniform(size=side.shape) * (width - w), rng.uniform(size=side.shape) * (height - h)
    return maps, np.stack([x, y, x + w, y + h], axis=-1).astype(np.float32)


def ours(maps: Any, boxes: Any, size: int, sampling_ratio: int, aligned: bool) -> dict[str, Callable[[], Any]]:
    def pool(maps: Any) -> jax.Array:
        def one(maps: Any, boxes: Any) -> jax.Array:
            return multilevel_roi_align(
                maps, boxes, strides=STRIDES, output_size=size, sampling_ratio=sampling_ratio, aligned=aligned
            )

        return jax.vmap(one)(maps, boxes)

    maps, boxes = jax.device_put((maps, boxes))
    forward = jax.jit(pool)
    backward = jax.jit(lambda maps, cotangent: jax.vjp(pool, maps)[1](cotangent)[0])
    cotangent = jax.block_until_ready(forward(maps))
    return {
        "forward": lambda: jax.block_until_ready(forward(maps)),
        "gradient": lambda: jax.block_until_ready(backward(maps, cotangent)),
    }


def has_torchvision() -> bool:
    """Whether torchvision's compiled operator can be called."""
    try:
        import torch
        from torchvision.ops import roi_align

        roi_align(torch.ones(1, 1, 2, 2), torch.ones(1, 5), 1)
    except Exception as error:  # broken installations raise almost anything
        print(f"without torchvision: {error!r:.100}")
        return False
    return True


def torchvisions(
    maps: Any, boxes: Any, shape: tuple[int, int], size: int, sampling_ratio: int
) -> dict[str, Callable[[], Any]]:
    """The same work in torchvision."""
    import torch
    from torchvision.ops import MultiScaleRoIAlign

    names = [str(i) for i in range(len(maps))]
    features = {n: torch.from_numpy(m).permute(0, 3, 1, 2).contiguous() for n, m in zip(names, maps, strict=True)}
    rois = [torch.from_numpy(b) for b in boxes]
    pool = MultiScaleRoIAlign(names, size, sampling_ratio)
    run = lambda f: pool(f, rois, [shape] * len(boxes))  # noqa: E731
    leaves = {n: f.clone().requires_grad_() for n, f in features.items()}
    result = run(leaves)
    cotangent = torch.ones_like(result)

    def forward() -> None:
        with torch.no_grad():
            run(features)

    def gradient() -> None:
        torch.autograd.grad(result, list(leaves.values()), cotangent, retain_graph=True)

    return {"torchvision forward": forward, "torchvision gradient": gradient}


def race(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, taking turns; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the quickstart's sizes only")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    compare = has_torchvision()
    print("| maps | boxes x channels | bins | sampling | what | median ms | min ms |\n|---|---|---|---|---|---|---|")
    for case in SMALL if options.small else LARGE + SMALL:
        maps, boxes = make(case)
        for size in (7, 14):
            for mode, (sampling_ratio, aligned) in MODES.items():
                functions = ours(maps, boxes, size, sampling_ratio, aligned)
                if compare and not aligned:  # MultiScaleRoIAlign has no half-pixel shift
                    functions |= torchvisions(maps, boxes, case.shape, size, sampling_ratio)
                for name, seconds in race(functions, options.rounds).items():
                    median, least = 1e3 * statistics.median(seconds), 1e3 * min(seconds)
                    row = f"| {case.name} | {case.boxes} x {case.channels} | {size}x{size} | {mode} | {name} "
                    print(f"{row}| {median:.0f} | {least:.0f} |", flush=True)


if __name__ == "__main__":
    main()
