"""Evaluate a trained model: `python eval.py --workdir=runs/quickstart [--config.data.root=DIR ...]`.

Prints COCO's tables of boxes and masks; results, metrics and pictures go to WORKDIR/evaluation.
"""

from __future__ import annotations

import argparse

from mrcnn_jax import command_line, compilation_cache
from mrcnn_jax.config import apply_overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", required=True, help="folder that train.py wrote")
    arguments, overrides = command_line.parse(parser)
    compilation_cache.enable()
    from mrcnn_jax.evaluation.run import FOLDER, evaluate_model
    from mrcnn_jax.training.checkpoint import load_variables

    config, variables = load_variables(arguments.workdir)
    evaluate_model(apply_overrides(config, overrides), variables, arguments.workdir)
    print(f"\nresults, metrics and pictures are in {arguments.workdir}/{FOLDER}")


if __name__ == "__main__":
    command_line.run(main)
