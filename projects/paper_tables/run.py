"""The runs of a table: one training per row and seed, in a folder of its own; finished runs are not repeated.

    workdir/data/<kind>/                     the procedural images, the same for all runs
    workdir/classifiers/<backbone>.npz       initial weights of the small networks
    workdir/<table>/<row>/seed<N>/           the work directory of a run
    workdir/<table>/<row>/seed<N>/ablation.json     its configuration, seconds and, when it is finished, metrics
    workdir/<table>/table.md, table.png      the table so far

Rows with equal recipes in several tables share the runs in the folder of the first table.
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
from projects.paper_tables.report import Results, RunResult

RECORD = "ablation.json"
SHAPES = "shapes"  # name of the procedural dataset
SCALES: dict[str, ModuleType] = {"coco": coco, "small": small}
# Fields that do not affect the metrics of a run.
_IGNORED_FIELDS = (
    *("train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.remat"),
    *("data.cache_dir", "data.workers", "eval.overlays"),
)

TrainFunction = Callable[[Config, Path], Any]


@dataclasses.dataclass(frozen=True)
class TableRequest:
    """A table to reproduce, with the options of the command."""

    table: tables.PaperTable
    workdir: Path
    data: str = SHAPES  # or a folder in the layout of COCO
    scale: str = ""  # empty: "small" for the procedural dataset, "coco" for a folder
    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ()  # empty: all rows of the scale
    init: Mapping[str, str] = dataclasses.field(default_factory=dict)  # backbone ("": all others) -> weight file
    overrides: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)  # (I, N): the I-th of every N runs


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """One run: a row with a seed."""

    row: tables.TableRow
    seed: int
    config: Config
    folder: Path


def plan(request: TableRequest) -> list[TrainingJob]:
    """Return the runs of a table, ordered by seed, then row. Raises ConfigError if one of them is invalid."""
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


def unavailable_rows(request: TableRequest) -> list[tables.TableRow]:
    """Return the rows of the table without a recipe at the requested scale."""
    return [row for row in request.table.rows if _scale(request) == "small" and not small.is_available(row)]


def run(request: TableRequest, train: TrainFunction, *, only_report: bool = False) -> Results:
    """Train the unfinished runs, print the table after each run, and return its results.

    Raises ConfigError before training if a folder has a run of another configuration, and the errors of `train`.
    """
    jobs = plan(request)
    for job in jobs:
        check_unchanged(job)
    for row in unavailable_rows(request):
        print(f"table {request.table.name}: {row.label} has no small recipe and is skipped")
    index, count = request.shard
    shard = [job for number, job in enumerate(jobs) if number % count == index - 1]
    unfinished = [] if only_report else [job for job in shard if finished_result(job) is None]
    for number, job in enumerate(unfinished):
        left = _time_left(results(request), len(unfinished) - number)
        print(
            f"\ntable {request.table.name}, run {number + 1} of {len(unfinished)}: {job.row.label},"
            f" seed {job.seed}{left}",
            flush=True,
        )
        _train(job, train)
        write_report(request)
    if not unfinished:
        write_report(request)
    return results(request)


def pretrain(request: TableRequest) -> None:
    """Create the initial weights of the small networks, unless `--init` gives others."""
    for job in plan(request):
        file = Path(job.config.init)
        if file.parent == request.workdir / small.CLASSIFIERS and finished_result(job) is None:
            small.pretrain(file, job.config, request.workdir / "data" / small.CLASSIFIERS)


def results(request: TableRequest) -> Results:
    """Return the finished runs of the table with these settings: name of the row -> results, for all rows and seeds."""
    scale = _scale(request)
    by_row: Results = {}
    folders = _run_folders(scale)
    for row in request.table.rows:
        if (request.table.name, row.name) in folders:
            folder = request.workdir.joinpath(*folders[request.table.name, row.name])
            by_row[row.name] = []
            seeds = sorted(int(name) for path in folder.glob("seed*") if (name := path.name[4:]).isdecimal())
            with contextlib.suppress(ConfigError):  # an override of a field that this row does not have
                seed_results = [finished_result(_job(request, scale, row, seed)) for seed in seeds]
                by_row[row.name] = [result for result in seed_results if result is not None]
    return by_row


def finished_result(job: TrainingJob) -> RunResult | None:
    """Return the result of a run, or None if it is unfinished or has other settings. `init` may be another path."""
    record = _read_record(job.folder)
    if record is None or record["metrics"] is None or set(_changed_fields(record, job.config)) - {"init"}:
        return None
    return RunResult(job.seed, record["metrics"], record["seconds"])


def check_unchanged(job: TrainingJob) -> None:
    """Raise ConfigError if the folder has a finished or resumable run of another configuration."""
    record = _read_record(job.folder)
    if record is None or (record["metrics"] is None and resumable_config(job.folder) is None):
        return
    names = _changed_fields(record, job.config)
    if names:
        raise ConfigError(
            f"{job.folder} has a run of {job.row.label} that differs in {', '.join(names)}; all runs of a table must"
            " have the same settings. Use another --workdir, or delete this folder"
        )


def write_report(request: TableRequest) -> None:
    """Print the table so far, and write it to the folder of its runs."""
    by_row = results(request)
    folder = request.workdir / request.table.name
    folder.mkdir(parents=True, exist_ok=True)
    report.print_table(request.table, by_row)
    files.write_text(folder / "table.md", report.markdown(request.table, by_row))
    if any(by_row.values()):
        files.write_bytes(folder / "table.png", report.plot(request.table, by_row))
    print(f"{folder}/table.md, table.png", flush=True)


def _train(job: TrainingJob, train: TrainFunction) -> None:
    """Train one run and record metrics and seconds, including those before an interruption."""
    previous = _read_record(job.folder)
    # A run without a checkpoint starts again, and so do its seconds.
    spent = previous["seconds"] if previous is not None and resumable_config(job.folder) is not None else 0.0
    job.folder.mkdir(parents=True, exist_ok=True)
    metrics, start = None, time.monotonic()
    _write_record(job, None, spent)
    try:
        train(job.config, job.folder)
        metrics = json.loads((job.folder / FOLDER / "metrics.json").read_text())
    finally:
        _write_record(job, metrics, spent + time.monotonic() - start)


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def _write_record(job: TrainingJob, metrics: dict[str, float] | None, seconds: float) -> None:
    content = {"config": json.loads(to_json(job.config)), "seconds": round(seconds, 1), "metrics": metrics}
    files.write_text(job.folder / RECORD, json.dumps(content, indent=2) + "\n")


def _changed_fields(record: Mapping[str, Any], config: Config) -> list[str]:
    """Return the names of the fields that differ from those of a recorded run and affect its metrics."""
    names = differing_fields(from_json(json.dumps(record["config"])), config)
    return [name for name in names if not name.startswith(_IGNORED_FIELDS)]


def _time_left(finished: Results, runs: int) -> str:
    """Format the estimated time of `runs` more runs; empty if none is finished."""
    seconds = [result.seconds for row in finished.values() for result in row]
    return f"; about {report.format_duration(sum(seconds) / len(seconds) * runs)} left" if seconds else ""


def _scale(request: TableRequest) -> str:
    """Return the scale of a request. Raises ConfigError if the dataset does not support it."""
    scale = request.scale or ("small" if request.data == SHAPES else "coco")
    if scale not in SCALES:
        raise ConfigError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}")
    if request.data == SHAPES and scale != "small":
        raise ConfigError(
            "--scale=coco needs --data=DIR, a folder in the layout of COCO; without it, use --scale=small"
        )
    return scale


def _rows(request: TableRequest, scale: str) -> list[tables.TableRow]:
    if not request.rows:
        unavailable = unavailable_rows(request)
        return [row for row in request.table.rows if row not in unavailable]
    selected = [request.table.row(name) for name in request.rows]
    return [row for row in request.table.rows if row in selected]


@functools.cache
def _run_folders(scale: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Map (table, row) to the first (table, row) with the same recipe, in whose folder its runs are."""
    folders: dict[tuple[str, str], tuple[str, str]] = {}
    first: dict[Config, tuple[str, str]] = {}
    for table in tables.TABLES.values():
        for row in table.rows:
            if scale == "coco" or small.is_available(row):
                key = (table.name, row.name)
                folders[key] = first.setdefault(SCALES[scale].config(row), key)
    return folders


def _job(request: TableRequest, scale: str, row: tables.TableRow, seed: int) -> TrainingJob:
    """Return the run of a row. Raises ConfigError if the scale lacks the row, or the row an overridden field."""
    config: Config = SCALES[scale].config(row)
    table, name = _run_folders(scale)[request.table.name, row.name]
    data = config.data
    if request.data == SHAPES:
        data = dataclasses.replace(data, root=str(request.workdir / "data" / os.path.basename(data.root)))
    else:
        data = small.with_coco_images(data, row.persons) if scale == "small" else data
        data = dataclasses.replace(data, root=request.data)
    init = str(request.workdir / small.CLASSIFIERS / os.path.basename(config.init)) if scale == "small" else config.init
    config = dataclasses.replace(
        config,
        name=f"table{table}_{name}",
        init=request.init.get(row.backbone, request.init.get("", init)),
        data=data,
        train=dataclasses.replace(config.train, seed=seed),
    )
    config = apply_overrides(config, request.overrides)
    return TrainingJob(row, seed, config, request.workdir / table / name / f"seed{seed}")


def _check_overrides(request: TableRequest, scale: str) -> None:
    """Raise ConfigError for overrides of fields that have a flag or differ between the rows."""
    flags = {"name": "--rows", "train.seed": "--seeds", "data.root": "--data", "init": "--init"}
    configs = [SCALES[scale].config(row) for row in request.table.rows if row not in unavailable_rows(request)]
    for override in request.overrides:
        name = override.partition("=")[0]
        if name in flags:
            raise ConfigError(f"{name} cannot be set for a table; use {flags[name]}")
        if len({_field_value(config, name) for config in configs} - {None}) > 1:
            raise ConfigError(f"{name} differs between rows of table {request.table.name}; choose rows with --rows")


def _field_value(config: Config, name: str) -> Any:
    """Return the value of a dotted field; None if a part of the path is missing."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
