"""Validate recipes and list them, one line per recipe; by default those of mrcnn_jax.

Columns: network, parameters, training, published accuracy. The exit status is 1
if a recipe is invalid.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import sys
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.config import Config, ModelConfig, load_config, needs_initial_weights, recipe_file, recipes, validate

_NOTES = (
    "* needs initial weights: --config.init=FILE",
    "Parameters are counted for COCO's 80 classes (keypoints: 1 class) if the recipe takes its classes from the data.",
)


def main(arguments: Sequence[str]) -> int:
    parser = common.make_parser("config", __doc__)
    common.add(parser, "recipes", "NAME_OR_FILE", "recipe, such as quickstart or own.py", str, nargs="*")
    valid, problems = [], []
    options, _ = common.parse(parser, arguments)
    for recipe in options.recipes or recipes():
        try:
            valid.append(read(recipe))
        except Exception as error:  # a recipe is a Python program, which can raise anything
            problems.append(f"{recipe}: {type(error).__name__}: {error}")
    if valid:
        print_table(valid)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def read(recipe: str) -> tuple[Config, str]:
    """Return the configuration and the docstring of a recipe (name or file) that is valid once `init` is set.

    Raises ConfigError, or any error of the file.
    """
    config = load_config(recipe)
    validate(dataclasses.replace(config, init=config.init or "FILE"))
    return config, ast.get_docstring(ast.parse(recipe_file(recipe).read_text())) or ""


def print_table(valid: Sequence[tuple[Config, str]]) -> None:
    """Print one line for each recipe. Counting its parameters may take a second."""
    heads = ("recipe", "network", "training", "published")
    rows = [(name(config), network(config.model), training(config), published(text)) for config, text in valid]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(row: Sequence[str], count: str) -> str:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([*cells[:2], count.rjust(10), *cells[2:]]).rstrip()

    print(line(heads, "parameters"))
    print("  ".join("-" * width for width in (*widths[:2], 10, *widths[2:])))
    for (config, _), row in zip(valid, rows, strict=True):
        print(line(row, f"{count_parameters(config.model) / 1e6:.1f} M"), flush=True)
    print("", *_NOTES, sep="\n")


def name(config: Config) -> str:
    """Name of the recipe, with a star if it needs initial weights and does not set `init`."""
    return config.name + ("*" if needs_initial_weights(config.model) and not config.init else "")


def network(model: ModelConfig) -> str:
    """Summary of the network, such as "R50-FPN, box mask" or "X101-32x8d-FPN, box 17 keypoints"."""
    backbone = model.backbone
    short = backbone.name.replace("resnet", "R").replace("efficientnet_lite", "EfficientNet-Lite")
    if backbone.groups > 1:
        short = f"{short.replace('R', 'X')}-{backbone.groups}x{backbone.width_per_group}d"
    norm = "" if backbone.norm == "frozen_bn" else f" {backbone.norm}"
    mask = " mask" if model.mask is not None else ""
    keypoints = f" {model.num_keypoints} keypoints" if model.keypoint is not None else ""
    return f"{short}-{model.features.upper()}{norm}, box{mask}{keypoints}"


def training(config: Config) -> str:
    """Summary of the training, such as "90k x 16, sgd 0.02, 60k 80k": steps, batch size, optimizer, milestones."""
    optimizer = config.optimizer
    milestones = " ".join(map(_thousands, optimizer.milestones)) or "constant"
    schedule = "cosine" if optimizer.schedule == "cosine" else milestones
    steps = f"{_thousands(config.train.steps)} x {config.train.batch_size}"
    return f"{steps}, {optimizer.name} {optimizer.learning_rate:g}, {schedule}"


def _thousands(steps: int) -> str:
    return f"{steps // 1000}k" if steps % 1000 == 0 else f"{steps:,}"


def published(docstring: str) -> str:
    """The metrics after "Published:" in the docstring of a recipe, without their source; "-" without any."""
    _, label, text = docstring.partition("Published: ")
    return " ".join(text.partition(" (")[0].split()) if label else "-"


@functools.cache
def count_parameters(model: ModelConfig) -> int:
    """Number of trainable and frozen parameters, from shapes alone."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed, so leave the accelerator free
    import jax

    from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes

    classes = model.num_classes or (80 if model.keypoint is None else 1)
    shapes = variable_shapes(build_model(dataclasses.replace(model, num_classes=classes)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
