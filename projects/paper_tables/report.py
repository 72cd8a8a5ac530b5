"""A table as text, as Markdown and as a picture: the paper's numbers, ours beside them, and what a switch gains."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from projects.paper_tables.tables import Row, Table, words


class Result(NamedTuple):
    """What one run found."""

    seed: int
    metrics: dict[str, float]  # of 1; -1 stands for "no such ground truth"
    seconds: float  # from the beginning of the training to the end of the evaluation


Results = dict[str, list[Result]]  # by row

_WIDTH = 132  # where there is no terminal
_NOTHING = "-"
# Okabe and Ito's, which color-blind people tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Cell(NamedTuple):
    """One metric of a row."""

    published: float | None
    values: tuple[float, ...]  # of the seeds, of 100

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        return spread(self.values)


def spread(values: Sequence[float]) -> float | None:
    """Half the range of two values, the standard deviation (of the sample) of more; None for fewer."""
    if len(values) < 2:
        return None
    return (max(values) - min(values)) / 2 if len(values) == 2 else statistics.stdev(values)


def cell(row: Row, metric: str, results: Sequence[Result]) -> Cell:
    """The paper's number and ours."""
    found = [result.metrics.get(metric, -1.0) for result in results]
    return Cell(row.published.get(metric), tuple(100 * value for value in found if value >= 0))


def gain(row: float | None, reference: float | None) -> float | None:
    """How much better than the reference, in percent of it."""
    return 100 * (row / reference - 1) if row is not None and reference else None


def duration(seconds: float) -> str:
    """Such as "12 minutes"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def markdown(table: Table, results: Results) -> str:
    """The table of a document."""
    heads, rows = _cells(table, results)
    lines = [heads, ["---"] * len(heads), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## Table {table.name}: {table.title}\n\nThe paper: {table.setting}.\n\n{text}\n\n{note(table, results)}\n"


def note(table: Table, results: Results) -> str:
    """How to read the table."""
    counts = {len(found) for found in results.values()}
    kinds = {2: "half the range of two seeds"} if 2 in counts else {}
    if max(counts, default=0) > 2:
        kinds[3] = "the standard deviation of three or more seeds"
    spreads = f" ± is {' or '.join(kinds.values())}." if kinds else ""
    return (
        f"The paper's number, then ours (mean of the seeds).{spreads} Gain: relative change of"
        f" {words(table.columns[0])} against {table.row(table.reference).label}, the paper's and ours. Time: of one"
        " run, evaluation included."
    )


def show(table: Table, results: Results) -> None:
    """Print the table; as plain lines where rich is not installed."""
    heads, rows = _cells(table, results)
    title = f"Table {table.name}: {table.title} ({table.setting})"
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as Grid
    except ImportError:
        print(title, *("  ".join(line) for line in [heads, *rows]), note(table, results), sep="\n")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    grid = Grid(title=title, box=box.SIMPLE, title_justify="left")
    for number, head in enumerate(heads):
        grid.add_column(head, justify="right" if number else "left")
    for line in rows:
        grid.add_row(*line)
    console.print(grid)
    console.print(note(table, results), markup=False, highlight=False)


def picture(table: Table, results: Results) -> bytes:
    """The paper's table and ours side by side, as PNG: bars of the rows, and a dot for each seed."""
    from matplotlib.figure import Figure  # here: it needs the packages of the extra `viz`

    rows = [row for row in table.rows if row.name in results]
    metrics = table.columns
    figure = Figure(figsize=(11, 1.4 + 0.32 * len(rows) * max(2, len(metrics))), layout="constrained")
    paper, ours = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(metrics)
    for place, metric in enumerate(metrics):
        color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
        for line, row in enumerate(rows):
            at = line - 0.4 + height * (place + 0.5)
            both = cell(row, metric, results[row.name])
            _bar(paper, at, both.published, (), height, color)
            _bar(ours, at, both.mean, both.values, height, color)
            ours.plot(
                both.values, [at] * len(both.values), marker, color="black", markerfacecolor="white", markersize=4
            )
        paper.barh([0], [0], color=color, alpha=0.75, label=words(metric))
    paper.set_title(f"the paper: {table.setting}", fontsize=9)
    ours.set_title("ours; a dot for each seed", fontsize=9)
    paper.set_yticks(range(len(rows)), [row.label for row in rows])
    paper.set_ylim(len(rows) - 0.5, -0.5)
    for axes in (paper, ours):
        axes.set_xlim(0, max(1.0, 1.12 * axes.get_xlim()[1]))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(metrics), fontsize=8)
    figure.suptitle(f"Table {table.name}: {table.title}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _bar(axes: Any, at: float, value: float | None, seeds: Sequence[float], height: float, color: str) -> None:
    """A bar with its number to the right of it, and of the seeds' dots."""
    if value is not None:
        axes.barh(at, value, 0.9 * height, color=color, alpha=0.75)
        axes.text(max(value, *seeds, 0), at, f"   {value:.1f}", va="center", fontsize=7)


def _cells(table: Table, results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads, and the text of the cells of each row that is there."""
    heads = [f"table {table.name}", *map(words, table.columns), "gain", "seeds", "time"]
    main = table.columns[0]
    reference = table.row(table.reference)
    base = cell(reference, main, results.get(table.reference, []))
    lines = []
    for row in table.rows:
        if row.name not in results:
            continue
        found = results[row.name]
        first = cell(row, main, found)
        changes = _NOTHING
        if row.name != table.reference:
            changes = f"{_percent(gain(first.published, base.published))} / {_percent(gain(first.mean, base.mean))}"
        seconds = [result.seconds for result in found]
        lines.append(
            [
                row.label,
                *(_beside(cell(row, metric, found)) for metric in table.columns),
                changes,
                str(len(found)),
                duration(statistics.fmean(seconds)) if seconds else _NOTHING,
            ]
        )
    return heads, lines


def _beside(both: Cell) -> str:
    """Such as "27.2 / 31.4 ± 0.3"."""
    if both.published is None and both.mean is None:
        return _NOTHING
    around = f" ± {both.spread:.1f}" if both.spread is not None else ""
    return f"{_number(both.published)} / {_number(both.mean)}{around}"


def _number(value: float | None) -> str:
    return _NOTHING if value is None or math.isnan(value) else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:+.1f} %"
