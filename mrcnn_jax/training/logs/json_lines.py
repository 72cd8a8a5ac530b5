"""Files with one JSON object per line, each with the step that it belongs to."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from mrcnn_jax.runtime import files
from mrcnn_jax.training.logs.console import SECONDS_BETWEEN_UPLOADS, MetricSink

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"  # in the work directory

log = logging.getLogger(__name__)
Row = dict[str, Any]  # "step", and metrics


class JsonLinesSink(MetricSink):
    """Writes one JSON object per line to workdir/metrics.jsonl. Drops lines after `start`, which a resumed run repeats.

    Objects in a remote store (gs://) cannot be appended to: the whole file is rewritten, at most once a minute.
    """

    def __init__(self, workdir: epath.PathLike, start: int):
        self._path = epath.Path(workdir) / METRICS
        self._rows, self._uploaded = truncate_rows(self._path, start), time.monotonic()
        self._file = None if files.is_remote(self._path) else self._path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        if self._file is not None:
            self._file.write(_format([row]))
            self._file.flush()
            return
        self._rows.append(row)
        if time.monotonic() - self._uploaded > SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self._upload()

    def _upload(self) -> None:
        write_rows(self._path, self._rows)
        self._uploaded = time.monotonic()


def truncate_rows(path: epath.Path, step: int) -> list[Row]:
    """Drop the rows after `step`, and lines that a power failure damaged, from the file; return the other rows."""
    content = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    rows = [_parse(line) for line in content.splitlines()]
    kept = [row for row in rows if row is not None and row["step"] <= step]
    if damaged := rows.count(None):
        log.warning("%s: dropping %d damaged lines; their metrics are lost", path, damaged)
    if content != _format(kept):  # also if only the line break at the end is missing
        write_rows(path, kept)
    return kept


def read_rows(path: epath.PathLike) -> list[Row]:
    """Return the rows of the file, without damaged lines; none if there is no file."""
    path = epath.Path(path)
    content = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    return [row for row in map(_parse, content.splitlines()) if row is not None]


def write_rows(path: epath.Path, rows: Iterable[Row]) -> None:
    """Atomically replace the file."""
    files.write_text(path, _format(rows))


def _format(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _parse(line: str) -> Row | None:
    """Return the row in a line; None if the line is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None
