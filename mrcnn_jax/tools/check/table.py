"""Tables of a survey on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mrcnn_jax.errors import format_value
from mrcnn_jax.tools.check.survey import Survey, class_rows, summary_rows

_NAME_WIDTH = 28  # longer names are wrapped
_COUNTS_WIDTH = 24  # characters of the counts of a class


def show(survey: Survey) -> None:
    """Print tables of the statistics of a file and of its classes."""
    console = Console()
    summary = Table(box=box.SIMPLE_HEAD, show_header=False)
    summary.add_column(no_wrap=True, style="bold")
    summary.add_column()
    for name, text in summary_rows(survey):
        summary.add_row(name, Text(text))
    console.print("", Text(_title(survey), "bold"), sep="\n", soft_wrap=True)
    console.print(summary)
    cells = [_cells(*row) for row in class_rows(survey)]
    if not cells:
        return
    name_width = min(_NAME_WIDTH, max(len(class_cells[0][0]) for class_cells in cells))
    height = -(-len(cells) // max(1, min(console.width // (name_width + _COUNTS_WIDTH), len(cells))))
    classes = Table(box=box.SIMPLE_HEAD)
    for _ in range(0, len(cells), height):  # classes continue in further groups of columns
        classes.add_column("class", overflow="fold", max_width=_NAME_WIDTH)
        classes.add_column("instances", justify="right")
        classes.add_column("images", justify="right")
    for i in range(height):
        classes.add_row(*[Text(text, style) for class_cells in cells[i::height] for text, style in class_cells])
    console.print(classes)


def _title(survey: Survey) -> str:
    return f"{survey.path}, images in {survey.folder}"


def _cells(name: str, category_id: int, instances: int, images: int) -> list[tuple[str, str]]:
    """Return text and style of the three cells of a class. Classes without instances are highlighted."""
    if not instances:
        return [(format_value(name), "yellow"), ("none", "yellow"), ("", "")]
    return [(format_value(name), ""), (f"{instances:,}", ""), (f"{images:,}", "dim")]
