"""Comparison of published and reproduced metrics: as text, Markdown and bar charts."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from projects.paper_tables.tables import PaperTable, TableRow, metric_label


class RunResult(NamedTuple):
    """Result of one run."""

    seed: int
    metrics: dict[str, float]  # 0..1; -1 without ground truth
    seconds: float  # of training and evaluation


Results = dict[str, list[RunResult]]  # by name of the row

_WIDTH = 132  # characters, if the output is not a terminal
_MISSING = "-"
# The palette of Okabe and Ito, for color-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class TableCell(NamedTuple):
    """Published and reproduced values of one metric of a row, in percent."""

    published: float | None
    values: tuple[float, ...]  # one per seed

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        return spread(self.values)


def spread(values: Sequence[float]) -> float | None:
    """Return half the range of two values, the sample standard deviation of more; None for fewer."""
    if len(values) < 2:
        return None
    return (max(values) - min(values)) / 2 if len(values) == 2 else statistics.stdev(values)


def cell(row: TableRow, metric: str, results: Sequence[RunResult]) -> TableCell:
    """Return the published and reproduced values of a metric of a row."""
    values = [result.metrics.get(metric, -1.0) for result in results]
    return TableCell(row.published.get(metric), tuple(100 * value for value in values if value >= 0))


def relative_gain(row: float | None, reference: float | None) -> float | None:
    """Return the relative improvement over the reference in percent; None if either is missing."""
    return 100 * (row / reference - 1) if row is not None and reference else None


def format_duration(seconds: float) -> str:
    """Format a duration, such as "12 minutes"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def markdown(table: PaperTable, results: Results) -> str:
    """Return the table as Markdown."""
    header, rows = _format_table(table, results)
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"Table {table.name}: {table.title}"
    return f"## {title}\n\nSetting of the paper: {table.setting}.\n\n{text}\n\n{caption(table, results)}\n"


def caption(table: PaperTable, results: Results) -> str:
    """Return the caption, which explains the columns."""
    counts = {len(row_results) for row_results in results.values()}
    spreads = ["half the range of two seeds"] if 2 in counts else []
    if max(counts, default=0) > 2:
        spreads.append("the standard deviation of three or more seeds")
    spread_note = f" ± is {' or '.join(spreads)}." if spreads else ""
    return (
        f"Published / reproduced (mean over seeds).{spread_note} Gain: relative change of"
        f" {metric_label(table.columns[0])} over {table.row(table.reference).label}, published / reproduced. Time: of"
        " one run with evaluation."
    )


def print_table(table: PaperTable, results: Results) -> None:
    """Print the table and its caption."""
    header, rows = _format_table(table, results)
    title = f"Table {table.name}: {table.title} ({table.setting})"
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    grid = Table(title=title, box=box.SIMPLE, title_justify="left")
    for column, heading in enumerate(header):
        grid.add_column(heading, justify="right" if column else "left")
    for line in rows:
        grid.add_row(*line)
    console.print(grid)
    console.print(caption(table, results), markup=False, highlight=False)


def plot(table: PaperTable, results: Results) -> bytes:
    """Return bar charts of the published and the reproduced table side by side, as PNG, with a dot per seed."""
    rows = [row for row in table.rows if row.name in results]
    metrics = table.columns
    figure = Figure(figsize=(11, 1.4 + 0.32 * len(rows) * max(2, len(metrics))), layout="constrained")
    published, reproduced = figure.subplots(1, 2, sharey=True)
    for series, metric in enumerate(metrics):
        cells = [cell(row, metric, results[row.name]) for row in rows]
        _plot_metric(published, reproduced, cells, series, len(metrics))
        published.barh([0], [0], color=_COLORS[series % len(_COLORS)], alpha=0.75, label=metric_label(metric))
    published.set_title(f"published: {table.setting}", fontsize=9)
    reproduced.set_title("reproduced; one dot per seed", fontsize=9)
    published.set_yticks(range(len(rows)), [row.label for row in rows])
    published.set_ylim(len(rows) - 0.5, -0.5)
    for axes in (published, reproduced):
        axes.set_xlim(0, max(1.0, 1.12 * axes.get_xlim()[1]))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(metrics), fontsize=8)
    figure.suptitle(f"Table {table.name}: {table.title}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _plot_metric(published: Any, reproduced: Any, cells: Sequence[TableCell], series: int, count: int) -> None:
    """Draw the bars of metric number `series` of `count`, one per row of the table."""
    color, marker = _COLORS[series % len(_COLORS)], _MARKERS[series % len(_MARKERS)]
    height = 0.8 / count
    for line, metric_cell in enumerate(cells):
        y = line - 0.4 + height * (series + 0.5)
        _bar(published, y, metric_cell.published, (), height, color)
        _bar(reproduced, y, metric_cell.mean, metric_cell.values, height, color)
        seeds_y = [y] * len(metric_cell.values)
        reproduced.plot(metric_cell.values, seeds_y, marker, color="black", markerfacecolor="white", markersize=4)


def _bar(axes: Any, y: float, value: float | None, seeds: Sequence[float], height: float, color: str) -> None:
    """Draw a bar, with its value to the right of it and of the dots of the seeds."""
    if value is not None:
        axes.barh(y, value, 0.9 * height, color=color, alpha=0.75)
        axes.text(max(value, *seeds, 0), y, f"   {value:.1f}", va="center", fontsize=7)


def _format_table(table: PaperTable, results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the column titles, and the cells of each row that has results, as text."""
    header = [f"table {table.name}", *map(metric_label, table.columns), "gain", "seeds", "time"]
    main_metric = table.columns[0]
    reference = table.row(table.reference)
    base = cell(reference, main_metric, results.get(table.reference, []))
    lines = []
    for row in table.rows:
        if row.name not in results:
            continue
        row_results = results[row.name]
        first = cell(row, main_metric, row_results)
        gains = _MISSING
        if row.name != table.reference:
            published = relative_gain(first.published, base.published)
            reproduced = relative_gain(first.mean, base.mean)
            gains = f"{_format_percent(published)} / {_format_percent(reproduced)}"
        seconds = [result.seconds for result in row_results]
        lines.append(
            [
                row.label,
                *(_format_cell(cell(row, metric, row_results)) for metric in table.columns),
                gains,
                str(len(row_results)),
                format_duration(statistics.fmean(seconds)) if seconds else _MISSING,
            ]
        )
    return header, lines


def _format_cell(metric_cell: TableCell) -> str:
    """Format a cell, such as "27.2 / 31.4 ± 0.3"."""
    if metric_cell.published is None and metric_cell.mean is None:
        return _MISSING
    spread_text = f" ± {metric_cell.spread:.1f}" if metric_cell.spread is not None else ""
    return f"{_format_number(metric_cell.published)} / {_format_number(metric_cell.mean)}{spread_text}"


def _format_number(value: float | None) -> str:
    return _MISSING if value is None or math.isnan(value) else f"{value:.1f}"


def _format_percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:+.1f} %"
