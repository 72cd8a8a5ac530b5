"""Evaluate a model: `python eval.py --workdir=runs/quickstart [--config.data.root=DIR ...]`, or with a peer's weights

    python eval.py --weights=FILE --model=maskrcnn_resnet50_fpn --config.data.root=COCO

in exact mode: each image is resized and padded as the peer would do it (--config.eval.resize=bucket: as here).
Several processes evaluate together, each its share of the images: see docs/scaling.md.
Prints COCO's tables of boxes, masks and keypoints, and the AP of each class; results, metrics and pictures go to
WORKDIR/evaluation, where WORKDIR is runs/NAME if a peer's model NAME is given none. --report writes report.html there:
tables, curves, errors and images on one page.
"""

from __future__ import annotations

import argparse

from etils import epath

from mrcnn_jax import cluster, command_line, compilation_cache, peers
from mrcnn_jax.config import apply_overrides, load_config
from mrcnn_jax.paths import user_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command_line.add_model(parser)
    parser.add_argument(
        "--config",
        type=user_path,
        help="with --weights: a recipe that says which images, and how large (default: COCO 2017)",
    )
    parser.add_argument("--report", action="store_true", help="also write a page to look at: evaluation/report.html")
    command_line.add_profile(parser)
    cluster.add_flags(parser)
    arguments, overrides = command_line.parse(parser)
    if arguments.config and not arguments.weights:
        parser.error("--config=FILE goes with --weights: a run has its own configuration")
    recipe = load_config(arguments.config) if arguments.config else None
    load = command_line.model_source(parser, arguments, recipe)
    compilation_cache.enable()
    from mrcnn_jax.evaluation import classes
    from mrcnn_jax.evaluation.run import FOLDER, REPORT, evaluate_model

    command_line.join(arguments)
    config, variables = command_line.load_on_main(load)
    workdir = arguments.workdir or f"runs/{config.name}"
    config = apply_overrides(config, overrides)
    evaluate_model(config, variables, workdir, report=arguments.report, profile=arguments.profile)
    if peers.is_main():
        if listing := classes.listing(epath.Path(workdir) / FOLDER / classes.FILE):
            print(f"\n{listing}")
        page = epath.Path(workdir) / FOLDER / REPORT
        opened = f"; open {page} in a browser" if arguments.report and page.exists() else ""
        print(f"\nresults, metrics and pictures are in {workdir}/{FOLDER}{opened}")


if __name__ == "__main__":
    command_line.run(main)
