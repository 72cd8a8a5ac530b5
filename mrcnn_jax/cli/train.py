"""Train a model, or resume a run.

The same command resumes an interrupted run from its last checkpoint; a run
that has finished is evaluated again. Several processes on one or more hosts
train together: see docs/scaling.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.config import load_config
from mrcnn_jax.runtime import compilation_cache


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("train", __doc__, overrides=True)
    recipe = "recipe: a name, such as quickstart (see `mrcnn config`), or a Python file with get_config()"
    common.add(parser, "--config", "NAME_OR_FILE", recipe, str, required=True)
    workdir = "directory for checkpoints, metrics and images (default: runs/NAME, with the recipe's name)"
    common.add(parser, "--workdir", "DIR", workdir, os.path.expanduser)
    common.add_profile_and_processes(parser)
    options, overrides = common.parse(parser, arguments)
    config = load_config(options.config, overrides)
    compilation_cache.enable()
    from mrcnn_jax.training.parallel import use_cpu_cores
    from mrcnn_jax.training.train import train

    if not common.initialize_distributed(options):
        use_cpu_cores(config.train.batch_size, accumulate=config.train.accumulate)
    train(config, options.workdir or f"runs/{config.name}", profile=options.profile)
