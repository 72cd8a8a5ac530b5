"""The runs of a table: each row with each seed is one training, in a folder of its own, and none is done twice.

    workdir/data/<kind>/                     the procedural images, the same for all runs
    workdir/classifiers/<backbone>.npz       what small networks begin with
    workdir/<table>/<row>/seed<N>/           a run as train.py leaves it
    workdir/<table>/<row>/seed<N>/ablation.json     its configuration, seconds and, when it is done, metrics
    workdir/<table>/table.md, table.png      the table so far

A row that is in several tables (table 2b's sigmoid is table 2c's RoIAlign) has its runs in the folder of the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mrcnn_jax.checkpoints.workdir import differing_fields, resumable_config
from mrcnn_jax.config import Config, apply_overrides, from_json, to_json, validate
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation.evaluate import FOLDER
from mrcnn_jax.runtime import files
from projects.paper_tables import coco, report, small, tables
from projects.paper_tables.report import Result, Results

RECORD = "ablation.json"
SHAPES = "shapes"  # as data: the procedural set
SCALES: dict[str, ModuleType] = {"coco": coco, "small": small}
# Fields that say nothing of what a finished run has found.
_IRRELEVANT = (
    *("train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.remat"),
    *("data.cache_dir", "data.workers", "eval.overlays"),
)

Train = Callable[[Config, Path], Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for."""

    table: tables.Table
    workdir: Path
    data: str = SHAPES  # or a folder in COCO's layout
    scale: str = ""  # empty: "small" for the procedural set, "coco" for a folder
    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ()  # empty: all that the scale has
    init: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by backbone; "" is for all others
    overrides: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)  # of the runs, the I-th of every N


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    row: tables.Row
    seed: int
    config: Config
    folder: Path


def plan(request: Request) -> list[Job]:
    """The runs of a table, one seed of all rows after the other. Raises ConfigError before anything is trained."""
    scale = _scale(request)
    rows = _rows(request, scale)
    _check_overrides(request, scale)
    jobs = [_job(request, scale, row, seed) for seed in request.seeds for row in rows]
    for job in jobs:
        try:
            validate(job.config)
        except ConfigError as error:
            raise ConfigError(f"table {request.table.name}, {job.row.label}: {error}") from error
    return jobs


def left_out(request: Request) -> list[tables.Row]:
    """Rows of the table that the scale does not have."""
    return [row for row in request.table.rows if _scale(request) == "small" and not small.has(row)]


def run(request: Request, train: Train, *, only_report: bool = False) -> Results:
    """Train what is not trained yet, tell the table after each run, and return what is known of it.

    Raises ConfigError before training where a run of the folder has another configuration, and what `train` raises.
    """
    jobs = plan(request)
    for job in jobs:
        check_unchanged(job)
    for row in left_out(request):
        print(f"table {request.table.name}: {row.label} has no small form and is left out")
    index, count = request.shard
    mine = [job for number, job in enumerate(jobs) if number % count == index - 1]
    waiting = [] if only_report else [job for job in mine if finished(job) is None]
    for number, job in enumerate(waiting):
        left = _left(results(request), len(waiting) - number)
        print(
            f"\ntable {request.table.name}, run {number + 1} of {len(waiting)}: {job.row.label}, seed {job.seed}{left}",
            flush=True,
        )
        _train(job, train)
        write_report(request)
    if not waiting:
        write_report(request)
    return results(request)


def pretrain(request: Request) -> None:
    """Make what the runs of the small scale begin with, if `--init` names nothing else."""
    for job in plan(request):
        file = Path(job.config.init)
        if file.parent == request.workdir / small.CLASSIFIERS and finished(job) is None:
            small.pretrain(file, job.config, request.workdir / "data" / small.CLASSIFIERS)


def results(request: Request) -> Results:
    """What is known of a table: by row, asked for or not, the finished runs of any seed with these settings."""
    scale = _scale(request)
    found: Results = {}
    homes = _homes(scale)
    for row in request.table.rows:
        if (request.table.name, row.name) in homes:
            folder = request.workdir.joinpath(*homes[request.table.name, row.name])
            found[row.name] = []
            seeds = sorted(int(name) for path in folder.glob("seed*") if (name := path.name[4:]).isdecimal())
            with contextlib.suppress(ConfigError):  # an override of what this row does not have
                done = [finished(_job(request, scale, row, seed)) for seed in seeds]
                found[row.name] = [result for result in done if result is not None]
    return found


def finished(job: Job) -> Result | None:
    """What a run found, if it is done, and was asked for with the same settings; its weights may have moved."""
    record = _read(job.folder)
    if record is None or record["metrics"] is None or set(_changed(record, job.config)) - {"init"}:
        return None
    return Result(job.seed, record["metrics"], record["seconds"])


def check_unchanged(job: Job) -> None:
    """Raise ConfigError if the folder holds a finished run, or the checkpoints of one, of another configuration."""
    record = _read(job.folder)
    if record is None or (record["metrics"] is None and resumable_config(job.folder) is None):
        return
    names = _changed(record, job.config)
    if names:
        raise ConfigError(
            f"{job.folder} holds a run of {job.row.label} that differs in {', '.join(names)}; runs of one table must be"
            " alike. Use another --workdir, or delete that folder"
        )


def write_report(request: Request) -> None:
    """Print the table so far, and write it beside its runs."""
    found = results(request)
    folder = request.workdir / request.table.name
    folder.mkdir(parents=True, exist_ok=True)
    report.show(request.table, found)
    files.write_text(folder / "table.md", report.markdown(request.table, found))
    if any(found.values()):
        files.write_bytes(folder / "table.png", report.picture(request.table, found))
    print(f"{folder}/table.md, table.png", flush=True)


def _train(job: Job, train: Train) -> None:
    """Train to the end and keep what was found; the seconds of an interrupted run count, too."""
    before = _read(job.folder)
    # A run without a checkpoint begins anew, and so does its clock.
    spent = before["seconds"] if before is not None and resumable_config(job.folder) is not None else 0.0
    job.folder.mkdir(parents=True, exist_ok=True)
    metrics, start = None, time.monotonic()
    _write(job, None, spent)
    try:
        train(job.config, job.folder)
        metrics = json.loads((job.folder / FOLDER / "metrics.json").read_text())
    finally:
        _write(job, metrics, spent + time.monotonic() - start)


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def _write(job: Job, metrics: dict[str, float] | None, seconds: float) -> None:
    content = {"config": json.loads(to_json(job.config)), "seconds": round(seconds, 1), "metrics": metrics}
    files.write_text(job.folder / RECORD, json.dumps(content, indent=2) + "\n")


def _changed(record: Mapping[str, Any], config: Config) -> list[str]:
    """Names of the fields that matter to what was found, and were others then."""
    names = differing_fields(from_json(json.dumps(record["config"])), config)
    return [name for name in names if not name.startswith(_IRRELEVANT)]


def _left(known: Results, runs: int) -> str:
    """How long so many more runs take, as far as finished ones tell."""
    seconds = [result.seconds for row in known.values() for result in row]
    return f"; about {report.duration(sum(seconds) / len(seconds) * runs)} left" if seconds else ""


def _scale(request: Request) -> str:
    """Raises ConfigError for a scale that the data do not have."""
    scale = request.scale or ("small" if request.data == SHAPES else "coco")
    if scale not in SCALES:
        raise ConfigError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}")
    if request.data == SHAPES and scale != "small":
        raise ConfigError("--scale=coco needs --data=DIR, a folder in COCO's layout; the procedural set is for small")
    return scale


def _rows(request: Request, scale: str) -> list[tables.Row]:
    if not request.rows:
        missing = left_out(request)
        return [row for row in request.table.rows if row not in missing]
    wanted = [request.table.row(name) for name in request.rows]
    return [row for row in request.table.rows if row in wanted]


@functools.cache
def _homes(scale: str) -> dict[tuple[str, str], tuple[str, str]]:
    """For each row of each table the first one that is the same recipe at this scale."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    first: dict[Config, tuple[str, str]] = {}
    for table in tables.TABLES.values():
        for row in table.rows:
            if scale == "coco" or small.has(row):
                place = (table.name, row.name)
                found[place] = first.setdefault(SCALES[scale].config(row), place)
    return found


def _job(request: Request, scale: str, row: tables.Row, seed: int) -> Job:
    """Raises ConfigError for a row without such a scale, and overrides of what it does not have."""
    config: Config = SCALES[scale].config(row)
    home, name = _homes(scale)[request.table.name, row.name]
    data = config.data
    if request.data == SHAPES:
        data = dataclasses.replace(data, root=str(request.workdir / "data" / os.path.basename(data.root)))
    else:
        data = small.on_photographs(data, row.persons) if scale == "small" else data
        data = dataclasses.replace(data, root=request.data)
    init = str(request.workdir / small.CLASSIFIERS / os.path.basename(config.init)) if scale == "small" else config.init
    config = dataclasses.replace(
        config,
        name=f"table{home}_{name}",
        init=request.init.get(row.backbone, request.init.get("", init)),
        data=data,
        train=dataclasses.replace(config.train, seed=seed),
    )
    config = apply_overrides(config, request.overrides)
    return Job(row, seed, config, request.workdir / home / name / f"seed{seed}")


def _check_overrides(request: Request, scale: str) -> None:
    """What rows differ in, and what a run is told by, is not for overrides."""
    flags = {"name": "--rows", "train.seed": "--seeds", "data.root": "--data", "init": "--init"}
    configs = [SCALES[scale].config(row) for row in request.table.rows if row not in left_out(request)]
    for override in request.overrides:
        name = override.partition("=")[0]
        if name in flags:
            raise ConfigError(f"{name} cannot be set for a table; use {flags[name]}")
        if len({_value(config, name) for config in configs} - {None}) > 1:
            raise ConfigError(f"{name} differs between rows of table {request.table.name}; choose rows with --rows")


def _value(config: Config, name: str) -> Any:
    """The value of a dotted field; None below a part that is not there."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
