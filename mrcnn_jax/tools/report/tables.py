"""The numbers of an evaluation as tables of HTML, whose cells are bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mrcnn_jax.evaluation.analysis import ERRORS, SPECIAL_ERRORS, Analysis, ClassScores, MetricTable
from mrcnn_jax.tools.pages.drawing import fitting
from mrcnn_jax.tools.pages.html import Child, Html, tag
from mrcnn_jax.tools.report.labels import HEADINGS, METRICS, OUTCOMES, SPECIAL, overlap, score

_SEEN = 0.0005  # what a difference of two numbers must be to be seen
_TIDES_AP = "To TIDE a class without instances in which something is predicted has an AP of 0; to COCO it has none."
_FIELDS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def headline(tables: Iterable[MetricTable]) -> Html:
    """The one number of each table, large."""
    tiles = [
        tag(
            "div",
            tag("span", f"AP of {HEADINGS[table.iou_type].lower()}", class_="what"),
            tag("b", score(table.metrics["AP"])),
            tag("span", f"AP50 {score(table.metrics['AP50'])}, AP75 {score(table.metrics['AP75'])}"),
            class_="tile",
        )
        for table in tables
    ]
    return tag("div", tiles, class_="tiles")


def metrics(tables: Sequence[MetricTable]) -> Html:
    """Every metric in a row, every measure of overlap in a column."""
    known = [name for name in METRICS if any(name in table.metrics for table in tables)]
    others = dict.fromkeys(name for table in tables for name in table.metrics if name not in METRICS)
    body = []
    for name in [*known, *others]:
        cells = [_cell(table.metrics[name]) if name in table.metrics else tag("td") for table in tables]
        heading = tag("th", tag("b", name), " ", tag("span", METRICS.get(name, ""), class_="meaning"), scope="row")
        body.append(tag("tr", heading, cells))
    return framed(["metric", *(HEADINGS[table.iou_type] for table in tables)], body, "metrics")


def classes(table: MetricTable, room: int) -> Html:
    """A row for each class, those without instances last; as many as there is room for, in bytes."""
    ordered = sorted(enumerate(table.classes), key=lambda pair: not pair[1].instances)
    rows = [_class_row(place, one) for place, one in ordered]
    shown = fitting(rows, room)
    note = tag("p", f"{len(rows) - len(shown):,} more classes are in classes.json.") if len(shown) < len(rows) else ""
    about = f"AP of each class by {overlap(table.iou_type)} of {HEADINGS[table.iou_type].lower()}"
    framed_rows = framed(["class", "instances", *_FIELDS], shown, "per-class", about)
    return tag("div", framed_rows, note, class_=f"tab tab-{table.iou_type}")


def _class_row(place: int, one: ClassScores) -> Html:
    cells = [_cell(getattr(one, field)) for field in _FIELDS]
    count = tag("td", f"{one.instances:,}" if one.instances else "none")
    name = tag("th", one.name, scope="row", data_class=place)
    return tag("tr", name, count, cells, class_=None if one.instances else "none")


def errors(table: MetricTable) -> Html:
    """What AP50 would gain by mending each kind of error, and how many of them there are."""
    assert table.errors is not None
    found = table.errors
    most = max([*found.gains.values(), 0.01])
    kinds = [(kind, OUTCOMES[kind]) for kind in ERRORS] + [(kind, SPECIAL[kind]) for kind in SPECIAL_ERRORS]
    rows = []
    for kind, words in kinds:
        gain = found.gains[kind]
        bar = tag("i", style=f"width:{100 * max(gain, 0) / most:.1f}%", class_=f"o-{kind}")
        name = tag("th", tag("b", words.name), " ", tag("span", words.meaning, class_="meaning"), scope="row")
        number = tag("td", f"{found.counts[kind]:,}" if kind in found.counts else "", class_="number")
        gained = tag("td", f"+{gain:.3f}" if gain >= 0 else f"{gain:.3f}", class_="number")
        rows.append(tag("tr", name, number, gained, tag("td", bar, class_="bar"), class_=f"kind-{kind}"))
    caption = f"{HEADINGS[table.iou_type]}: AP50 is {score(found.ap)}"
    differs = abs(found.ap - table.metrics["AP50"]) > _SEEN
    note = tag("p", _TIDES_AP, class_="where") if differs else ""
    drawn = _table(["kind", "count", "AP50", ""], rows)
    return tag("figure", tag("figcaption", caption), drawn, note, class_="chart errors")


def framed(heads: Sequence[str], body: Sequence[Html], style: str, about: str | None = None) -> Html:
    """A table that scrolls in its frame, by keys, too, where it is too large."""
    region = {"tabindex": 0, "role": "region", "aria_label": about or style}
    return tag("div", _table(heads, body), class_=f"classes {style}", **region)


def _table(heads: Sequence[str], body: Sequence[Html]) -> Html:
    return tag("table", tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])), tag("tbody", body))


def _cell(value: float) -> Html:
    """A number of 0..1, with a bar of its length behind it."""
    return tag("td", score(value), style=f"--v:{100 * value:.1f}%" if value >= 0 else None)


def tabs(name: str, iou_types: Sequence[str], chosen: str, *content: Child) -> Html:
    """`content` with a choice of the tables, one of which the style sheet shows: the one that is ticked."""
    radios = []
    for iou_type in iou_types:
        ticked = {"checked": ""} if iou_type == chosen else {}
        radio = tag("input", type="radio", name=name, class_=f"pick-{iou_type}", autocomplete="off", **ticked)
        radios.append(tag("label", radio, HEADINGS[iou_type]))
    return tag("div", tag("p", radios, class_="switches") if len(radios) > 1 else (), content, class_="tabs")


def summary(analysis: Analysis) -> str:
    """One sentence on what was evaluated."""
    instances = sum(category.instances for category in analysis.categories)
    present = sum(category.instances > 0 for category in analysis.categories)
    all_of = "" if present == len(analysis.categories) else f" of {len(analysis.categories):,}"
    images = _many(len(analysis.images), "image", "images")
    annotated = _many(instances, "annotated instance", "annotated instances")
    return f"{images}, {annotated} of {present:,}{all_of} {'class' if f'{present}{all_of}' == '1' else 'classes'}."


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
