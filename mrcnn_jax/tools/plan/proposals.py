"""What each choice of padded shapes costs on a dataset, as a table, and the setting to adopt."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mrcnn_jax.config import Config, SplitConfig, apply_overrides, load_config, validate
from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.annotations import read as read_annotations
from mrcnn_jax.data.synthetic import generate
from mrcnn_jax.errors import ConfigError, DataError
from mrcnn_jax.tools.plan.costs import Buckets, Cost, cost
from mrcnn_jax.tools.plan.search import best_buckets, required_shapes

MAX_BUCKETS = 6
_REMAINDERS = {"repeat": "repeated", "pad": "empty", "drop": "left out"}
_WIDTH = 118  # of the table where there is no terminal


def load_sizes(paths: Sequence[Path], overrides: Sequence[str]) -> tuple[Config, np.ndarray, np.ndarray]:
    """The configuration, the sizes (n, 2) of the images to train on, and those that must fit for evaluation too."""
    nothing = np.zeros((0, 2), int)
    if paths[0].suffix != ".py":
        config = _checked(apply_overrides(Config(), overrides))
        return config, np.concatenate([_sizes(path, SplitConfig(), config, 0) for path in paths]), nothing
    if len(paths) > 1:
        raise ConfigError(f"{paths[0]} is a recipe, which names its data; {paths[1]} is one too many")
    config = _checked(load_config(paths[0], overrides))
    data = config.data
    if data.shapes is not None:
        generate.write(data.shapes, Path(data.root))
    train = _sizes(Path(data.root) / data.train.annotations, data.train, config, data.min_keypoints)
    if config.eval.resize != "bucket":  # then evaluation does not use them
        return config, train, nothing
    return config, train, _sizes(Path(data.root) / data.eval.annotations, data.eval, config, 0)


def _checked(config: Config) -> Config:
    """`config`, validated as if it had been given the weights that it needs, and with something to plan."""
    validate(dataclasses.replace(config, init=config.init or "FILE"))
    if config.data.augment.scale_jitter is not None:
        raise ConfigError(
            "data.augment.scale_jitter fits images to their bucket, whatever shape it has, so there is nothing to plan:"
            " choose data.buckets as large as the device allows, or set data.augment.scale_jitter=None"
        )
    return config


def _sizes(path: Path, split: SplitConfig, config: Config, min_keypoints: int) -> np.ndarray:
    """Height and width (n, 2) of the images of a split that have so many labeled keypoints."""
    content = read_annotations(path, split.image_ids)
    chosen = set(content.categories.select(config.data.categories).ids)

    def labeled(image: ImageEntry) -> int:
        own = [a for a in image.annotations if a["category_id"] in chosen and not a.get("iscrowd")]
        return sum(visibility > 0 for a in own for visibility in (a.get("keypoints") or ())[2::3])

    sizes = [(i.height, i.width) for i in content.images if min_keypoints == 0 or labeled(i) >= min_keypoints]
    if not sizes:
        raise DataError(f"{path}: no image has the data.min_keypoints={min_keypoints} labeled keypoints")
    return np.array(sizes)


def propose_buckets(config: Config, sizes: np.ndarray, others: np.ndarray) -> list[Buckets]:
    """The best sets of 1, 2, ... buckets; fewer where the data set has fewer shapes."""
    data = config.data
    shortest = (max(data.shortest_edge_train), data.shortest_edge_eval)
    wanted = [
        required_shapes(part, shortest_edge=edge, longest_edge=data.longest_edge)
        for part, edge in zip((sizes, others), shortest, strict=True)
    ]
    distinct, which = np.unique(np.concatenate(wanted), axis=0, return_inverse=True)
    counts = np.bincount(which.ravel()[: len(sizes)], minlength=len(distinct))
    found = [best_buckets(distinct, counts, most) for most in range(1, min(MAX_BUCKETS, len(distinct)) + 1)]
    return list(dict.fromkeys(found))


def print_costs(config: Config, sizes: np.ndarray, others: np.ndarray, most: int) -> None:
    """Print what each choice costs, and how to adopt the one of at most `most` buckets."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    data = config.data
    found = propose_buckets(config, sizes, others)
    side = max(found[0][0])
    now, square = cost(sizes, data.buckets, config), cost(sizes, ((side, side),), config)
    rows = {"now": now, "one square": square}
    rows |= {f"best {len(buckets)}": cost(sizes, buckets, config) for buckets in found}
    console.print(
        f"{len(sizes):,} images to train on, {len(others):,} more to evaluate. Shorter edge"
        f" {max(data.shortest_edge_train)}, longer edge at most {data.longest_edge}; batches of"
        f" {config.train.batch_size}, data.remainder={data.remainder}. Now: data.buckets of the configuration.",
        soft_wrap=True,
    )
    console.print(cost_table(rows, now, square, data.remainder))
    chosen = [row for row in rows.values() if row is not now and row is not square and len(row.buckets) <= most][-1]
    for line in advice(config, chosen):
        console.print(line, markup=False, soft_wrap=True)


def cost_table(rows: dict[str, Cost], now: Cost, square: Cost, remainder: str) -> Table:
    """A row for each choice, with a line for each of its buckets."""
    result = Table(show_lines=True)
    heads = ("padding", "padding, all\ntraining sizes", "pixels/image\nvs now", "vs square", "epoch\nvs now")
    result.add_column("choice")
    for head in (*heads, "shrunk\nimages", "bucket", "images", _REMAINDERS[remainder]):
        result.add_column(head, justify="right")
    for name, row in rows.items():
        shares = (row.padding, row.training_padding, row.pixels / now.pixels, row.pixels / square.pixels)
        result.add_row(
            name,
            *(f"{share:.1%}" for share in (*shares, row.epoch / now.epoch)),
            f"{row.shrunk:,}",
            "\n".join(f"{height}x{width}" for height, width in row.buckets),
            "\n".join(f"{count:,}" for count in row.images),
            "\n".join(f"{count:,}" for count in row.remainder),
        )
    return result


def advice(config: Config, chosen: Cost) -> list[str]:
    """The setting to adopt, and what it brings with it."""
    count, fewest, batch = len(chosen.buckets), int(chosen.images[chosen.images > 0].min()), config.train.batch_size
    lines = [
        f"To adopt the best {count}:  {shlex.quote(override(chosen.buckets))}",
        f"It means {count} compilations of the training step and {count} of inference. No image is shown smaller than"
        " the edges ask for; images of other shapes, at prediction, are shown as large as a bucket holds them.",
        "It is a setting of the data: a run that has begun keeps the buckets that it began with.",
    ]
    if fewest < batch:
        consequence = (
            "data.remainder=drop refuses that: take fewer buckets, or another remainder"
            if config.data.remainder == "drop"
            else "its remainder may cost more than its shape saves; the column of an epoch has both"
        )
        lines.append(f"A bucket has {fewest} images, fewer than a batch of {batch}: {consequence}.")
    if config.data.augment.crop > 0:
        lines.append(
            "data.augment.crop: a cropped part has another shape than its image and stays in the image's bucket, so it"
            " has more padding than is said here."
        )
    return lines


def override(buckets: Buckets) -> str:
    """As train.py takes it."""
    return f"--config.data.buckets={buckets}".replace(" ", "")
