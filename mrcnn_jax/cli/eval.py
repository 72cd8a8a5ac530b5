"""Evaluate a model with the COCO or LVIS metrics of boxes, masks and keypoints.

The model is a run, or a torchvision or Detectron2 model by its name.
The latter is evaluated in exact mode: images are resized and padded as in the
reference implementation (--config.eval.resize=bucket: as in training).

Results, metrics and overlays are written to WORKDIR/evaluation, where WORKDIR
is --workdir, the run, or runs/NAME. Several processes share the images: see
docs/scaling.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from etils import epath

from mrcnn_jax.cli import common
from mrcnn_jax.config import apply_overrides, load_config
from mrcnn_jax.runtime import compilation_cache


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("eval", __doc__, overrides=True)
    common.add_model(parser)
    recipe_help = "of a model by name: recipe that sets the dataset and the image size (default: COCO 2017)"
    common.add(parser, "--config", "NAME_OR_FILE", recipe_help, str)
    parser.add_argument("--report", action="store_true", help="write an HTML report to evaluation/report.html")
    common.add_profile_and_processes(parser)
    options, overrides = common.parse(parser, arguments)
    model = common.model_source(parser, options)
    load = model.load
    if options.config:
        if model.run is not None:
            parser.error("--config=FILE needs --model=NAME: a run has its own configuration")
        load = functools.partial(load, load_config(options.config))
    compilation_cache.enable()
    from mrcnn_jax.distributed import collectives
    from mrcnn_jax.evaluation import class_scores
    from mrcnn_jax.evaluation.evaluate import FOLDER, evaluate_model

    common.initialize_distributed(options)
    config, variables = common.load_on_main(load)
    workdir = options.workdir or model.run or f"runs/{config.name}"
    config = apply_overrides(config, overrides)
    folder = epath.Path(workdir) / FOLDER
    page = folder / "report.html"
    report = None
    if options.report:
        from mrcnn_jax.tools.report.write import try_write

        report = functools.partial(try_write, output=page, title=config.name, value_range=config.data.value_range)
    evaluate_model(config, variables, workdir, report=report, profile=options.profile)
    if collectives.is_main():
        if table := class_scores.format_table(folder / class_scores.FILE):
            print(f"\n{table}")
        hint = f"; open {page} in a browser" if options.report and page.exists() else ""
        print(f"\nresults, metrics and overlays are in {folder}{hint}")
