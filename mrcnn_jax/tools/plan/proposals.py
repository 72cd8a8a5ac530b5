"""Costs of the best sets of buckets on a dataset as a table, and the override to adopt one."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mrcnn_jax.config import Config, SplitConfig, apply_overrides, load_config, recipes, validate
from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.annotations import read as read_annotations
from mrcnn_jax.data.synthetic import generate
from mrcnn_jax.errors import ConfigError, DataError
from mrcnn_jax.tools.plan.search import Buckets, Cost, best_buckets, cost, required_shapes

MAX_BUCKETS = 6
_REMAINDER_HEADINGS = {"repeat": "repeated", "pad": "empty", "drop": "left out"}
_WIDTH = 118  # characters, where the output is not a terminal


def load_sizes(paths: Sequence[Path], overrides: Sequence[str]) -> tuple[Config, np.ndarray, np.ndarray]:
    """Return the configuration, the sizes (n, 2) of the training images, and of other images that must fit.

    paths: a recipe, whose evaluation images must fit too, or COCO JSON files of training images.
    """
    no_sizes = np.zeros((0, 2), int)
    if paths[0].suffix != ".py" and str(paths[0]) not in recipes():
        config = _validated(apply_overrides(Config(), overrides))
        return config, np.concatenate([_image_sizes(path, SplitConfig(), config, 0) for path in paths]), no_sizes
    if len(paths) > 1:
        raise ConfigError(f"{paths[0]} is a recipe, which names its data; give it without {paths[1]}")
    config = _validated(load_config(paths[0], overrides))
    data = config.data
    if data.shapes is not None:
        generate.write_dataset(data.shapes, Path(data.root))
    train = _image_sizes(Path(data.root) / data.train.annotations, data.train, config, data.min_keypoints)
    if config.eval.resize != "bucket":  # then evaluation uses no buckets
        return config, train, no_sizes
    return config, train, _image_sizes(Path(data.root) / data.eval.annotations, data.eval, config, 0)


def _validated(config: Config) -> Config:
    """Return `config` after validation, without requiring initial weights."""
    validate(dataclasses.replace(config, init=config.init or "FILE"))
    if config.data.augment.scale_jitter is not None:
        raise ConfigError(
            "data.augment.scale_jitter fits images to their bucket, whatever shape it has, so there is nothing to plan:"
            " choose data.buckets as large as the device allows, or set data.augment.scale_jitter=None"
        )
    return config


def _image_sizes(path: Path, split: SplitConfig, config: Config, min_keypoints: int) -> np.ndarray:
    """Return height and width (n, 2) of the images of a split with at least `min_keypoints` labeled keypoints."""
    content = read_annotations(path, split.image_ids)
    category_ids = set(content.categories.select(config.data.categories).ids)

    def num_labeled(image: ImageEntry) -> int:
        instances = [a for a in image.annotations if a["category_id"] in category_ids and not a.get("iscrowd")]
        return sum(visibility > 0 for a in instances for visibility in (a.get("keypoints") or ())[2::3])

    sizes = [(i.height, i.width) for i in content.images if min_keypoints == 0 or num_labeled(i) >= min_keypoints]
    if not sizes:
        raise DataError(f"{path}: no image has the data.min_keypoints={min_keypoints} labeled keypoints")
    return np.array(sizes)


def propose_buckets(config: Config, sizes: np.ndarray, other_sizes: np.ndarray) -> list[Buckets]:
    """Return the best sets of 1, 2, ... buckets; fewer if the dataset has fewer shapes."""
    data, longest = config.data, config.data.longest_edge
    shapes = required_shapes(sizes, shortest_edge=max(data.shortest_edge_train), longest_edge=longest)
    others = required_shapes(other_sizes, shortest_edge=data.shortest_edge_eval, longest_edge=longest)
    distinct, indices = np.unique(np.concatenate([shapes, others]), axis=0, return_inverse=True)
    counts = np.bincount(indices.ravel()[: len(sizes)], minlength=len(distinct))
    proposals = [best_buckets(distinct, counts, n) for n in range(1, min(MAX_BUCKETS, len(distinct)) + 1)]
    return list(dict.fromkeys(proposals))


def print_costs(config: Config, sizes: np.ndarray, other_sizes: np.ndarray, max_buckets: int) -> None:
    """Print the cost of each proposal, and how to adopt the best one of at most `max_buckets` buckets."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    data = config.data
    proposals = propose_buckets(config, sizes, other_sizes)
    side = max(proposals[0][0])
    current, square = cost(sizes, data.buckets, config), cost(sizes, ((side, side),), config)
    best = {f"best {len(buckets)}": cost(sizes, buckets, config) for buckets in proposals}
    console.print(
        f"Training images: {len(sizes):,}. Further images for evaluation: {len(other_sizes):,}. Shorter edge"
        f" {max(data.shortest_edge_train)}, longer edge at most {data.longest_edge}; batch size"
        f" {config.train.batch_size}, data.remainder={data.remainder}. Current: data.buckets of the configuration.",
        soft_wrap=True,
    )
    console.print(cost_table({"current": current, "one square": square, **best}, current, square, data.remainder))
    adopted = [row for row in best.values() if len(row.buckets) <= max_buckets][-1]
    for line in advice(config, adopted):
        console.print(line, markup=False, soft_wrap=True)


def cost_table(rows: dict[str, Cost], current: Cost, square: Cost, remainder: str) -> Table:
    """Return a table with a row for each set of buckets, with a line for each bucket."""
    result = Table(show_lines=True)
    headings = ("padding", "padding, all\ntraining sizes", "pixels/image\nvs current", "vs square", "epoch\nvs current")
    result.add_column("choice")
    for heading in (*headings, "shrunk\nimages", "bucket", "images", _REMAINDER_HEADINGS[remainder]):
        result.add_column(heading, justify="right")
    for name, row in rows.items():
        ratios = (row.padding, row.training_padding, row.pixels / current.pixels, row.pixels / square.pixels)
        result.add_row(
            name,
            *(f"{ratio:.1%}" for ratio in (*ratios, row.epoch / current.epoch)),
            f"{row.shrunk:,}",
            "\n".join(f"{height}x{width}" for height, width in row.buckets),
            "\n".join(f"{count:,}" for count in row.images),
            "\n".join(f"{count:,}" for count in row.remainder),
        )
    return result


def advice(config: Config, adopted: Cost) -> list[str]:
    """Return the override to adopt the buckets, and its consequences."""
    count, fewest, batch = len(adopted.buckets), int(adopted.images[adopted.images > 0].min()), config.train.batch_size
    override = f"--config.data.buckets={adopted.buckets}".replace(" ", "")
    lines = [
        f"To adopt the best {count}:  {shlex.quote(override)}",
        f"The training step and inference are then compiled {count} times each. No image is scaled below what the edges"
        " ask for. In prediction, images of other shapes are scaled to fit a bucket.",
        "The buckets of a run cannot be changed after it has started.",
    ]
    if fewest < batch:
        consequence = (
            "data.remainder=drop refuses that: choose fewer buckets, or another data.remainder"
            if config.data.remainder == "drop"
            else "its remainder may cost more than its shape saves; the column `epoch` includes both"
        )
        lines.append(f"A bucket has {fewest} images, fewer than the batch size {batch}: {consequence}.")
    if config.data.augment.crop > 0:
        lines.append(
            "With data.augment.crop, there is more padding than shown: a crop has another shape than its image, and"
            " stays in the bucket of the image."
        )
    return lines
