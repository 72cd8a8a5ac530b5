"""Mask R-CNN R50-FPN on an accelerator: the same results as on the CPU, and its speed beside torchvision's.

Both networks have the same weights, those of `tests/golden/recipe.py`: they find a hundred objects in any image, so all
heads have their full work. Both start from images on the device and end with whole masks on the device. They take
turns; medians and minima are printed as Markdown. Run it through `benchmarks/gpu.sh`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from mrcnn_jax import presets
from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.models.rcnn import build_model, detect
from mrcnn_jax.ops.masks import paste
from mrcnn_jax.structures import Batch, Detections, GroundTruth
from mrcnn_jax.training.step import create_state, make_train_step
from mrcnn_jax.weights import torchvision as names

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
CLASSES = 90


class Sizes(NamedTuple):
    """How much is measured."""

    shape: tuple[int, int]  # of the images
    inference: int  # images in a batch
    training: int
    rounds: int
    check: tuple[int, int]  # image shape of the comparison with the CPU
    dtype: Literal["float32", "bfloat16"]  # of our timed networks


FULL = Sizes((800, 1088), 8, 16, 10, (256, 320), "bfloat16")
SMALL = Sizes((64, 96), 1, 1, 2, (64, 96), "float32")  # XLA:CPU takes minutes for bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="small images, few rounds: a dry run")
    sizes = SMALL if parser.parse_args().small else FULL
    state = weights()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    check_against_cpu(state, sizes)
    images = np.random.default_rng(0).integers(0, 256, (sizes.training, *sizes.shape, 3), dtype=np.uint8)
    rows = {
        f"inference, {sizes.inference} images": (
            our_inference(state, images[: sizes.inference], sizes.dtype),
            their_inference(state, images[: sizes.inference]),
        ),
        f"training step, {sizes.training} images": (
            our_training(state, images, sizes.dtype),
            their_training(state, images),
        ),
    }
    height, width = sizes.shape
    print(f"\nImages of {height}x{width}; ours in {sizes.dtype}, torchvision under bfloat16 autocast;", end=" ")
    print(f"median (minimum) of {sizes.rounds} rounds\n")
    print("| | ours, s | torchvision, s | ratio |\n|---|---|---|---|")
    for name, pair in rows.items():
        print_row(name, *pair, rounds=sizes.rounds)


def weights() -> dict[str, np.ndarray]:
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.state(json.loads((GOLDEN / "tv_keys_maskrcnn.json").read_text()))


def configured(**changes: Any) -> ModelConfig:
    return dataclasses.replace(presets.torchvision_model("maskrcnn_resnet50_fpn"), num_classes=CLASSES, **changes)


def check_against_cpu(state: dict[str, np.ndarray], sizes: Sizes) -> None:
    """Print how many of the CPU's float32 detections the default device finds, in float32 and in the type timed."""
    images = np.random.default_rng(1).integers(0, 256, (2, *sizes.check, 3), dtype=np.uint8)
    image_sizes = np.tile(np.int32(sizes.check), (2, 1))

    def found(dtype: str, device: jax.Device, precision: str | None) -> Detections:
        model = build_model(configured(compute_dtype=dtype))
        with jax.default_device(device), jax.default_matmul_precision(precision):
            result = jax.jit(partial(detect, model))(names.import_state(model, state), images, image_sizes)
            return jax.tree.map(np.asarray, result)

    here, cpu = jax.devices()[0], jax.devices("cpu")[0]
    expected = found("float32", cpu, "highest")
    print(
        "| against float32 on the CPU | found | largest score difference | largest box difference |\n|---|---|---|---|"
    )
    for label, dtype, precision in (
        ("float32, highest precision", "float32", "highest"),
        ("float32, default precision", "float32", None),
        (f"{sizes.dtype}, as timed", sizes.dtype, None),
    ):
        print(f"| {label} | {' | '.join(compare(found(dtype, here, precision), expected))} |")


def compare(ours: Detections, theirs: Detections) -> tuple[str, str, str]:
    """Matched: the same label and a box within a pixel. Differences are those of matched pairs."""
    wanted, matched, score, box = 0, 0, 0.0, 0.0
    for i in range(len(theirs.valid)):
        for j in np.flatnonzero(theirs.valid[i]):
            wanted += 1
            distance = np.abs(ours.boxes[i] - theirs.boxes[i][j]).max(1)
            distance[~(ours.valid[i] & (ours.classes[i] == theirs.classes[i][j]))] = np.inf
            nearest = int(distance.argmin())
            if distance[nearest] <= 1:
                matched += 1
                score = max(score, abs(float(ours.scores[i][nearest] - theirs.scores[i][j])))
                box = max(box, float(distance[nearest]))
    return f"{matched} of {wanted}", f"{score:.1e}", f"{box:.1e} px"


def our_inference(state: dict[str, np.ndarray], images: np.ndarray, dtype: Any) -> Callable[[], Any]:
    model = build_model(configured(compute_dtype=dtype))
    shape = images.shape[1:3]

    @jax.jit
    def run(variables: Any, images: Any, sizes: Any) -> Any:
        found = detect(model, variables, images, sizes)
        masks = jax.lax.map(lambda one: paste(*one, shape, rule="torchvision") >= 0.5, (found.masks, found.boxes))
        return found, masks

    arguments = jax.device_put((names.import_state(model, state), images, np.tile(np.int32(shape), (len(images), 1))))
    return lambda: jax.block_until_ready(run(*arguments))


def our_training(state: dict[str, np.ndarray], images: np.ndarray, dtype: Any) -> Callable[[], Any]:
    config = Config(model=configured(compute_dtype=dtype))
    model = build_model(config.model)
    optimizer = optax.sgd(1e-4, momentum=0.9)
    step = jax.jit(make_train_step(model, config, optimizer, optax.constant_schedule(1e-4)), donate_argnums=0)
    batch, key = jax.device_put((training_batch(images), jax.random.key(0)))
    current = jax.device_put(create_state(optimizer, names.import_state(model, state)))

    def run() -> Any:
        nonlocal current
        current, metrics = step(current, batch, key)
        return jax.block_until_ready(metrics)

    return run


def boxes_of(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """(count, 20, 4): twenty objects an image, of sides from a tenth to a half of it."""
    rng = np.random.default_rng(2)
    extent = np.float32([shape[1], shape[0]])
    sides = rng.uniform(0.1, 0.5, (count, 20, 2)) * extent
    corner = rng.uniform(0, 1, (count, 20, 2)) * (extent - sides)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def training_batch(images: np.ndarray) -> Batch:
    count, shape = len(images), images.shape[1:3]
    boxes = boxes_of(count, shape)
    slots = boxes.shape[:2]
    truth = GroundTruth(
        boxes=boxes,
        classes=np.ones(slots, np.int32),
        masks=np.ones((*slots, 112, 112), np.uint8),
        mask_windows=boxes,
        keypoints=np.zeros((*slots, 0, 3), np.float32),
        valid=np.ones(slots, bool),
    )
    sizes = np.tile(np.int32(shape), (count, 1))
    return Batch(images, sizes, np.arange(count, dtype=np.int32), np.ones(count, bool), truth)


def their_model(state: dict[str, np.ndarray]) -> Any:
    """torchvision's network in channels-last layout on its fastest device, or None where it is not installed."""
    try:
        import torch
        from torchvision.models import resnet50
        from torchvision.models.detection import MaskRCNN
        from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
        from torchvision.ops import FrozenBatchNorm2d
    except ImportError:
        return None
    backbone = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 3)
    model = MaskRCNN(backbone, CLASSES + 1)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)


def their_images(images: np.ndarray, device: Any) -> list[Any]:
    import torch

    return [torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in images]


def their_inference(state: dict[str, np.ndarray], images: np.ndarray) -> Callable[[], Any] | None:
    model = their_model(state)
    if model is None:
        return None
    import torch

    device = next(model.parameters()).device
    batch = their_images(images, device)
    model.eval()
    keep_size(model, images.shape)

    def run() -> Any:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            masks = [found["masks"] >= 0.5 for found in model(batch)]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return masks

    return run


def their_training(state: dict[str, np.ndarray], images: np.ndarray) -> Callable[[], Any] | None:
    model = their_model(state)
    if model is None:
        return None
    import torch

    device = next(model.parameters()).device
    batch = their_images(images, device)
    targets = [their_target(boxes, images.shape[1:3], device) for boxes in boxes_of(len(images), images.shape[1:3])]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)
    model.train()
    keep_size(model, images.shape)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = sum(model(batch, targets).values())
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def their_target(boxes: np.ndarray, shape: tuple[int, ...], device: Any) -> dict[str, Any]:
    import torch

    masks = np.zeros((len(boxes), *shape), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = np.ones(len(boxes), np.int64)
    arrays = {"boxes": boxes, "labels": labels, "masks": masks}
    return {name: torch.from_numpy(value).to(device) for name, value in arrays.items()}


def keep_size(model: Any, shape: tuple[int, ...]) -> None:
    """Its transform would resize other images than those of 800 to 1333 pixels."""
    model.transform.min_size, model.transform.max_size = (min(shape[1:3]),), max(shape[1:3])


def print_row(name: str, ours: Callable[[], Any], theirs: Callable[[], Any] | None, *, rounds: int) -> None:
    functions = [ours] if theirs is None else [ours, theirs]
    for function in functions:  # compiles and warms up
        function()
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    medians = [statistics.median(seconds) for seconds in times]
    cells = [f"{median:.3f} ({min(seconds):.3f})" for median, seconds in zip(medians, times, strict=True)]
    ratio = f"{medians[0] / medians[1]:.2f}" if theirs is not None else "-"
    print(f"| {name} | {cells[0]} | {cells[1] if theirs is not None else 'not installed'} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
