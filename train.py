"""Train a model: `python train.py --config=configs/quickstart.py [--workdir=DIR] [--config.a.b=value ...]`.

The same command again continues an interrupted run from its last checkpoint; a finished run is evaluated again.
Several processes, on one or many hosts, train together: see docs/scaling.md, where the exit statuses are listed too.
"""

from __future__ import annotations

import argparse
import os

from mrcnn_jax import cluster, command_line, compilation_cache
from mrcnn_jax.config import load_config
from mrcnn_jax.paths import user_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", type=user_path, required=True, help="recipe: a Python file with get_config()")
    parser.add_argument(
        "--workdir",
        type=os.path.expanduser,
        help="folder for checkpoints, metrics and pictures (default: runs/ and the recipe's name)",
    )
    command_line.add_profile(parser)
    cluster.add_flags(parser)
    arguments, overrides = command_line.parse(parser)
    config = load_config(arguments.config, overrides)
    compilation_cache.enable()
    from mrcnn_jax.training.parallel import use_cpu_cores
    from mrcnn_jax.training.run import train

    if not command_line.join(arguments):
        use_cpu_cores(config.train.batch_size, parts=config.train.accumulate)
    train(config, arguments.workdir or f"runs/{config.name}", profile=arguments.profile)


if __name__ == "__main__":
    command_line.run(main)
