"""Train a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.a.b=value ...]`.

The same command again continues an interrupted run from its last checkpoint.
"""

from __future__ import annotations

import argparse

from mrcnn_jax import compilation_cache
from mrcnn_jax.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="recipe: a Python file with get_config()")
    parser.add_argument("--workdir", required=True, help="where checkpoints, metrics and pictures go")
    arguments, rest = parser.parse_known_args()
    overrides = [argument.removeprefix("--config.") for argument in rest]
    if any(not argument.startswith("--config.") or "=" not in argument for argument in rest):
        parser.error(f"unknown arguments {rest}; fields of the recipe are set by --config.name=value")
    compilation_cache.enable()
    from mrcnn_jax.training.loop import train

    train(load_config(arguments.config, overrides), arguments.workdir)


if __name__ == "__main__":
    main()
