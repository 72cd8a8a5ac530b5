"""Train a model: `python train.py --config=configs/quickstart.py [--workdir=DIR] [--config.a.b=value ...]`.

The same command again continues an interrupted run from its last checkpoint; a finished run is evaluated again.
"""

from __future__ import annotations

import argparse
import sys

from mrcnn_jax import command_line, compilation_cache
from mrcnn_jax.config import load_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="recipe: a Python file with get_config()")
    parser.add_argument(
        "--workdir", help="folder for checkpoints, metrics and pictures (default: runs/ and the recipe's name)"
    )
    arguments, overrides = command_line.parse(parser)
    config = load_config(arguments.config, overrides)
    compilation_cache.enable()
    from mrcnn_jax.training.loop import NonFiniteLossError
    from mrcnn_jax.training.parallel import RecompilationError, use_cpu_cores
    from mrcnn_jax.training.run import train

    use_cpu_cores(config.train.batch_size, parts=config.train.accumulate)
    try:
        train(config, arguments.workdir or f"runs/{config.name}")
    except (NonFiniteLossError, RecompilationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command_line.run(main)
