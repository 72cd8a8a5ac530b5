"""`python -m projects.paper_tables TABLE`: reproduce a table of the Mask R-CNN paper and compare the results.

TABLE is 2a, 2b, 2c, 2d, 2e, agnostic, 3, 4, 5 or 6; docs/paper.md describes them. Each row is trained once per seed, on
the same data and with the same budget. The same command continues after an interruption; finished runs are not
repeated. Configuration fields of all rows are set as in train.py: --config.train.steps=100.
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
    parser.add_argument("--rows", default="", help="train only these rows, such as roi_pool_max,roi_align_average")
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
        help="initial weights, required with frozen batch norm; R101=FILE sets one backbone; may be repeated",
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="do only the I-th of every N runs")
    parser.add_argument("--only-report", action="store_true", help="only print and write the table so far")
    arguments, overrides = common.parse(parser, sys.argv[1:])
    from projects.paper_tables import run  # imports jax

    request = run.TableRequest(
        table=tables.table(arguments.table),
        workdir=Path(arguments.workdir),
        data=arguments.data,
        scale=arguments.scale,
        seeds=_parse_seeds(arguments.seeds),
        rows=tuple(filter(None, arguments.rows.split(","))),
        init=dict(map(_parse_init, arguments.init)),
        overrides=tuple(overrides),
        shard=_parse_shard(arguments.shard),
    )
    if not arguments.only_report:
        files.check_output(request.workdir, "--workdir", folder=True)
        _prepare([job.config for job in run.plan(request)])
        run.pretrain(request)
    run.run(request, _train, only_report=arguments.only_report)


def _prepare(configs: Sequence[Config]) -> None:
    """Enable the compilation cache and set the number of CPU devices, for all runs."""
    compilation_cache.enable()
    from mrcnn_jax.training.parallel import use_cpu_cores

    micro_batch_sizes = [config.train.batch_size // config.train.accumulate for config in configs]
    use_cpu_cores(math.gcd(*micro_batch_sizes))


def _train(config: Config, workdir: Path) -> Any:
    """Train one run, then free its compiled programs, so that memory does not grow from row to row."""
    import jax

    from mrcnn_jax.training.train import train

    try:
        return train(config, workdir)
    finally:
        jax.clear_caches()


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds={text}: give whole numbers of 0 or more, such as 0,1")
    return seeds


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard={text}: give I/N with I of 1..N, such as 1/2")
    return int(index), int(count)


def _parse_init(text: str) -> tuple[str, str]:
    """Return backbone and file; the backbone is "" for a file for all backbones."""
    name, separator, file = text.partition("=")
    return (name, file) if separator and name in ("R50", "R101", "X101") else ("", text)


if __name__ == "__main__":
    sys.exit(common.run(main))
