"""Effect of ImageNet weights on the light recipe: accuracy on one category, with and without them; and inference time
compared with Mask R-CNN R50-FPN.

    python benchmarks/light_recipe.py FOLDER [--category=person] [--steps=N] [--seeds 0 1] [--weights pretrained random]
    python benchmarks/light_recipe.py FOLDER --inference

FOLDER contains images/ and annotations.json (COCO format). Of the images of the category, in the order of their ids,
every fourth from the third on is for evaluation. "pretrained" is the recipe, with frozen norms and layers; "random"
trains them, with batch norm, from random weights; "unfrozen" is the same as "random" from ImageNet weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_jax.config import Config, SplitConfig, load_config
from mrcnn_jax.runtime import compilation_cache

_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "light_mask_rcnn.py"
_ANNOTATIONS = "annotations.json"
KINDS = ("pretrained", "unfrozen", "random")


class RunResult(NamedTuple):
    """Metrics and time of a run."""

    box_ap: float
    mask_ap: float
    box_ap50: float
    mask_ap50: float
    minutes: float  # compilation, training and evaluation
    step_seconds: float  # median over the log


def split(annotations: Path, category: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the training and evaluation images of a category."""
    content = json.loads(annotations.read_text())
    category_ids = {c["id"] for c in content["categories"] if c["name"] == category}
    image_ids = {a["image_id"] for a in content["annotations"] if a["category_id"] in category_ids and not a["iscrowd"]}
    eval_ids = sorted(image_ids)[2::4]
    return tuple(sorted(image_ids.difference(eval_ids))), tuple(eval_ids)


def recipe(folder: Path, category: str, steps: int, seed: int, weights: str) -> Config:
    """Return the light recipe on the split; `weights` is one of KINDS."""
    config = load_config(_RECIPE)
    train_ids, eval_ids = split(folder / _ANNOTATIONS, category)
    data = dataclasses.replace(
        config.data,
        root=str(folder),
        train=SplitConfig(_ANNOTATIONS, "images", train_ids),
        eval=SplitConfig(_ANNOTATIONS, "images", eval_ids),
        categories=(category,),
    )
    config = dataclasses.replace(
        config, data=data, train=dataclasses.replace(config.train, steps=steps or config.train.steps, seed=seed)
    )
    if weights == "pretrained":
        return config
    backbone = dataclasses.replace(config.model.backbone, norm="bn", frozen_stages=0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
    return config if weights == "unfrozen" else dataclasses.replace(config, init="")


def run(config: Config, workdir: Path) -> RunResult:
    """Train and evaluate in a new folder."""
    from mrcnn_jax.training.train import train

    start = time.perf_counter()
    train(config, workdir)
    minutes = (time.perf_counter() - start) / 60
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(config.train.batch_size / line["images_per_second"] for line in lines)
    return RunResult(
        metrics["bbox/AP"], metrics["segm/AP"], metrics["bbox/AP50"], metrics["segm/AP50"], minutes, seconds
    )


def compare(folder: Path, category: str, steps: int, seeds: list[int], kinds: list[str], workdir: Path) -> None:
    """Run all kinds for each seed, alternately, and print a Markdown table."""
    rows = []
    for seed in seeds:
        for weights in kinds:
            result = run(recipe(folder, category, steps, seed, weights), workdir / f"{weights}_{seed}")
            rows.append((weights, seed, result))
    print("\n| weights | seed | box AP | mask AP | box AP50 | mask AP50 | minutes | seconds per step, median |")
    print("|---|---|---|---|---|---|---|---|")
    for weights, seed, result in rows:
        scores = " | ".join(f"{score:.3f}" for score in result[:4])
        print(f"| {weights} | {seed} | {scores} | {result.minutes:.1f} | {result.step_seconds:.2f} |")


def inference(folder: Path, rounds: int = 5) -> None:
    """Print the seconds of a prediction with random weights, for each model in the shapes of its recipe."""
    import cv2
    import jax

    from mrcnn_jax.inference.predictor import Predictor
    from mrcnn_jax.models.mask_rcnn import build_model, init_variables

    paths = sorted((folder / "images").iterdir())[:rounds]
    images = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    for name in ("light_mask_rcnn", "mask_rcnn_r50_fpn_1x"):
        config: Any = load_config(_RECIPE.with_name(f"{name}.py"), ["model.num_classes=80"])
        predict = Predictor(config, init_variables(build_model(config.model), jax.random.key(0)))
        seconds = []
        for image in images:
            predict([image])  # may compile
            start = time.perf_counter()
            predict([image])
            seconds.append(time.perf_counter() - start)
        print(f"{name}: {statistics.median(seconds):.3f} s per image (min {min(seconds):.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--category", default="person")
    parser.add_argument("--steps", type=int, default=0, help="(default: as in the recipe)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--weights", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/light_recipe"))
    parser.add_argument("--inference", action="store_true")
    arguments = parser.parse_args()
    compilation_cache.enable()
    if arguments.inference:
        inference(arguments.folder)
        return
    from mrcnn_jax.training.parallel import use_cpu_cores

    use_cpu_cores(load_config(_RECIPE).train.batch_size)
    compare(
        arguments.folder, arguments.category, arguments.steps, arguments.seeds, arguments.weights, arguments.workdir
    )


if __name__ == "__main__":
    main()
