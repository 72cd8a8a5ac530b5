"""`python -m projects.paper_tables TABLE`: run one of the Mask R-CNN paper's tables, and print ours beside it.

TABLE is 2a, 2b, 2c, 2d, 2e, agnostic, 3, 4, 5 or 6; docs/paper.md says what they are. Each row is trained once with
each seed, on the same data and with the same budget. The same command again continues where it was interrupted; a run
that is finished is not done again. Fields of all rows are set as in train.py: --config.train.steps=100.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrcnn_jax.cli import common
from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.runtime import compilation_cache, files
from projects.paper_tables import tables


def main() -> None:
    parser = common.make_parser("", __doc__, overrides=True)
    parser.prog = "python -m projects.paper_tables"
    parser.add_argument("table", metavar="TABLE", help=f"one of {', '.join(tables.TABLES)}")
    parser.add_argument(
        "--data",
        type=os.path.expanduser,
        default="shapes",
        metavar="DIR",
        help="a folder in COCO's layout; default: procedural images",
    )
    parser.add_argument(
        "--scale", default="", choices=("coco", "small"), help="the paper's setting (default with --data=DIR), or small"
    )
    parser.add_argument("--seeds", default="0", help="such as 0,1 (default: 0)")
    parser.add_argument("--rows", default="", help="only these rows, such as roi_pool_max,roi_align_average")
    parser.add_argument(
        "--workdir",
        type=os.path.expanduser,
        default="runs/ablations",
        help="folder of all tables (default: runs/ablations)",
    )
    parser.add_argument(
        "--init",
        action="append",
        default=[],
        metavar="[BACKBONE=]FILE",
        help="initial weights, which frozen batch norm needs; R101=FILE for one backbone; may be repeated",
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="do the I-th of every N runs; others do the rest")
    parser.add_argument("--only-report", action="store_true", help="train nothing; print and write the table so far")
    arguments, overrides = common.parse(parser, sys.argv[1:])
    from projects.paper_tables import run  # here: it needs jax

    request = run.Request(
        table=tables.table(arguments.table),
        workdir=Path(arguments.workdir),
        data=arguments.data,
        scale=arguments.scale,
        seeds=_seeds(arguments.seeds),
        rows=tuple(filter(None, arguments.rows.split(","))),
        init=dict(map(_weights, arguments.init)),
        overrides=tuple(overrides),
        shard=_shard(arguments.shard),
    )
    if not arguments.only_report:
        files.check_output(request.workdir, "--workdir", folder=True)
        _prepare([job.config for job in run.plan(request)])
        run.pretrain(request)
    run.run(request, _train, only_report=arguments.only_report)


def _prepare(configs: Sequence[Config]) -> None:
    """Once for all runs: where compiled programs are kept, and how many devices a CPU is."""
    compilation_cache.enable()
    from mrcnn_jax.training.parallel import use_cpu_cores

    shares = [config.train.batch_size // config.train.accumulate for config in configs]
    use_cpu_cores(math.gcd(*shares))


def _train(config: Config, workdir: Path) -> Any:
    """One run; what it compiled is let go, so that memory does not grow from row to row."""
    import jax

    from mrcnn_jax.training.train import train

    try:
        return train(config, workdir)
    finally:
        jax.clear_caches()


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds={text}: give whole numbers of 0 or more, such as 0,1")
    return seeds


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard={text}: give I/N with I of 1..N, such as 1/2")
    return int(index), int(count)


def _weights(text: str) -> tuple[str, str]:
    """Backbone and file; a file alone is for all backbones."""
    name, found, file = text.partition("=")
    return (name, file) if found and name in ("R50", "R101", "X101") else ("", text)


if __name__ == "__main__":
    sys.exit(common.run(main))
