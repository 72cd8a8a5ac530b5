"""Metrics and errors of an evaluation as HTML tables with bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mrcnn_jax.evaluation.analysis import ERRORS, SPECIAL_ERRORS, Analysis, ClassScores, MetricTable
from mrcnn_jax.tools.pages.drawing import within_budget
from mrcnn_jax.tools.pages.html import Child, Html, tag
from mrcnn_jax.tools.report.labels import HEADINGS, METRICS, OUTCOMES, SPECIAL, format_score, overlap_measure

_VISIBLE_DIFFERENCE = 0.0005  # of two metrics with three decimals
_TIDE_NOTE = "A class with predictions but without instances has an AP of 0 in TIDE, and no AP in COCO."
_FIELDS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def headline(tables: Iterable[MetricTable]) -> Html:
    """Return the AP of each table, in large type."""
    tiles = [
        tag(
            "div",
            tag("span", f"AP of {HEADINGS[table.iou_type].lower()}", class_="tile-title"),
            tag("b", format_score(table.metrics["AP"])),
            tag("span", f"AP50 {format_score(table.metrics['AP50'])}, AP75 {format_score(table.metrics['AP75'])}"),
            class_="tile",
        )
        for table in tables
    ]
    return tag("div", tiles, class_="tiles")


def metrics(tables: Sequence[MetricTable]) -> Html:
    """Return a table with a row for each metric and a column for each kind of evaluation."""
    known = [name for name in METRICS if any(name in table.metrics for table in tables)]
    others = dict.fromkeys(name for table in tables for name in table.metrics if name not in METRICS)
    body = []
    for name in [*known, *others]:
        cells = [_cell(table.metrics[name]) if name in table.metrics else tag("td") for table in tables]
        heading = tag("th", tag("b", name), " ", tag("span", METRICS.get(name, ""), class_="description"), scope="row")
        body.append(tag("tr", heading, cells))
    return table_frame(["metric", *(HEADINGS[table.iou_type] for table in tables)], body, "metrics")


def classes(table: MetricTable, byte_budget: int) -> Html:
    """Return a table with a row for each class within the byte budget, those without instances last."""
    ordered = sorted(enumerate(table.classes), key=lambda pair: not pair[1].instances)
    rows = [_class_row(index, scores) for index, scores in ordered]
    shown = within_budget(rows, byte_budget)
    note = tag("p", f"{len(rows) - len(shown):,} more classes are in classes.json.") if len(shown) < len(rows) else ""
    label = f"AP of each class by {overlap_measure(table.iou_type)} of {HEADINGS[table.iou_type].lower()}"
    rows_frame = table_frame(["class", "instances", *_FIELDS], shown, "per-class", label)
    return tag("div", rows_frame, note, class_=f"tab tab-{table.iou_type}")


def _class_row(index: int, scores: ClassScores) -> Html:
    cells = [_cell(getattr(scores, field)) for field in _FIELDS]
    count = tag("td", f"{scores.instances:,}" if scores.instances else "none")
    name = tag("th", scores.name, scope="row", data_class=index)
    return tag("tr", name, count, cells, class_=None if scores.instances else "unused")


def errors(table: MetricTable) -> Html:
    """Return a table of the number of errors of each kind, and what AP50 would gain without them."""
    assert table.errors is not None
    result = table.errors
    largest = max([*result.gains.values(), 0.01])
    kinds = [(kind, OUTCOMES[kind]) for kind in ERRORS] + [(kind, SPECIAL[kind]) for kind in SPECIAL_ERRORS]
    rows = []
    for kind, label in kinds:
        gain = result.gains[kind]
        bar = tag("i", style=f"width:{100 * max(gain, 0) / largest:.1f}%", class_=f"o-{kind}")
        name = tag("th", tag("b", label.name), " ", tag("span", label.description, class_="description"), scope="row")
        number = tag("td", f"{result.counts[kind]:,}" if kind in result.counts else "", class_="number")
        gained = tag("td", f"+{gain:.3f}" if gain >= 0 else f"{gain:.3f}", class_="number")
        rows.append(tag("tr", name, number, gained, tag("td", bar, class_="bar"), class_=f"kind-{kind}"))
    caption = f"{HEADINGS[table.iou_type]}: AP50 is {format_score(result.ap)}"
    differs = abs(result.ap - table.metrics["AP50"]) > _VISIBLE_DIFFERENCE
    note = tag("p", _TIDE_NOTE, class_="note") if differs else ""
    body = _table(["kind", "count", "AP50", ""], rows)
    return tag("figure", tag("figcaption", caption), body, note, class_="chart errors")


def table_frame(heads: Sequence[str], body: Sequence[Html], style: str, label: str | None = None) -> Html:
    """Return a table in a frame that scrolls, also with the keyboard."""
    region = {"tabindex": 0, "role": "region", "aria_label": label or style}
    return tag("div", _table(heads, body), class_=f"table-frame {style}", **region)


def _table(heads: Sequence[str], body: Sequence[Html]) -> Html:
    return tag("table", tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])), tag("tbody", body))


def _cell(value: float) -> Html:
    """Return a cell with a score of 0..1 and a bar of that length."""
    return tag("td", format_score(value), style=f"--v:{100 * value:.1f}%" if value >= 0 else None)


def tabs(name: str, iou_types: Sequence[str], selected: str, *content: Child) -> Html:
    """Return `content` with radio buttons, with which the stylesheet shows one table of it."""
    radios = []
    for iou_type in iou_types:
        checked = {"checked": ""} if iou_type == selected else {}
        radio = tag("input", type="radio", name=name, class_=f"pick-{iou_type}", autocomplete="off", **checked)
        radios.append(tag("label", radio, HEADINGS[iou_type]))
    return tag("div", tag("p", radios, class_="toggles") if len(radios) > 1 else (), content, class_="tabs")


def summary(analysis: Analysis) -> str:
    """Return the numbers of images, instances and classes in one sentence."""
    instances = sum(category.instances for category in analysis.categories)
    present = sum(category.instances > 0 for category in analysis.categories)
    all_of = "" if present == len(analysis.categories) else f" of {len(analysis.categories):,}"
    images = _counted(len(analysis.images), "image")
    annotated = _counted(instances, "annotated instance")
    return f"{images}, {annotated} of {present:,}{all_of} {'class' if f'{present}{all_of}' == '1' else 'classes'}."


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
