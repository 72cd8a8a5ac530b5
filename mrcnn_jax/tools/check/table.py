"""The numbers of a survey on a terminal."""

from __future__ import annotations

from mrcnn_jax.errors import shown
from mrcnn_jax.tools.check.survey import Survey, by_frequency, facts

_LONGEST_NAME = 28  # longer names are broken
_NUMBERS = 24  # characters that the numbers of a class take


def show(survey: Survey) -> None:
    """Print what there is and how often each class occurs, as tables; as plain lines where rich is not installed."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _show_plainly(survey)
        return
    console = Console()
    summary = Table(box=box.SIMPLE_HEAD, show_header=False)
    summary.add_column(no_wrap=True, style="bold")
    summary.add_column()
    for name, text in facts(survey):
        summary.add_row(name, Text(text))
    console.print("", Text(_title(survey), "bold"), sep="\n", soft_wrap=True)
    console.print(summary)
    cells = [_cells(*row) for row in by_frequency(survey)]
    if not cells:
        return
    longest = min(_LONGEST_NAME, max(len(name[0][0]) for name in cells))
    height = -(-len(cells) // max(1, min(console.width // (longest + _NUMBERS), len(cells))))
    classes = Table(box=box.SIMPLE_HEAD)
    for _ in range(0, len(cells), height):  # groups of columns, side by side
        classes.add_column("class", overflow="fold", max_width=_LONGEST_NAME)
        classes.add_column("instances", justify="right")
        classes.add_column("images", justify="right")
    for i in range(height):  # down the columns
        row = [Text(text, style) for name in cells[i::height] for text, style in name]
        classes.add_row(*row)
    console.print(classes)


def _title(survey: Survey) -> str:
    return f"{survey.path}, images in {survey.folder}"


def _cells(name: str, category_id: int, instances: int, images: int) -> list[tuple[str, str]]:
    """Text and style of the three cells of a class; one without instances stands out."""
    if not instances:
        return [(shown(name), "yellow"), ("none", "yellow"), ("", "")]
    return [(shown(name), ""), (f"{instances:,}", ""), (f"{images:,}", "dim")]


def _show_plainly(survey: Survey) -> None:
    print(f"\n{_title(survey)}")
    for name, text in facts(survey):
        print(f"  {name:20} {text}")
    print("  instances of each class:")
    for name, _, instances, images in by_frequency(survey):
        print(f"  {shown(name):20} {instances or 'none'}{f' in {images} images' if images else ''}")
