"""Results of `mrcnn verify` as JSON and Markdown, and the table of all published weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mrcnn_jax.errors import DataError
from mrcnn_jax.evaluation.notes import NAMES
from mrcnn_jax.weights import zoo

DEVIATIONS = 1.5  # bootstrap standard deviations that AP of a part of the images may differ
RULES = (
    "All images: AP, rounded to one decimal as the published AP is, may differ by 0.1. Part of the images: by"
    f" {DEVIATIONS} standard deviations of AP over 200 bootstrap samples of them; by chance, one correct AP in seven"
    " differs more."
)


@dataclass(frozen=True)
class Report:
    """AP of published weights. All AP are in percent, by iou_type: "bbox", "segm", "keypoints"."""

    name: str
    weights: str  # SHA-256 of the file
    data: str  # hash of the evaluated images and annotations, see `Dataset.fingerprint`
    overrides: list[str]  # of the configuration, except for paths
    version: str  # of mrcnn_jax
    published: dict[str, float]
    images: int
    date: str
    software: str
    hardware: str
    command: str
    measured: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)  # standard deviations; empty: all images were evaluated
    seconds: float = 0.0

    def difference(self, iou_type: str) -> float:
        """Return by how much the measured AP exceeds the published one, see `RULES`."""
        measured, published = self.measured[iou_type], self.published[iou_type]
        return measured - published if self.deviations else (round(10 * measured) - round(10 * published)) / 10

    def tolerance(self, iou_type: str) -> float:
        """Return by how much they may differ."""
        return DEVIATIONS * self.deviations[iou_type] if self.deviations else 0.1

    def passes(self, iou_type: str) -> bool:
        """Whether the measured AP agrees with the published one."""
        return abs(self.difference(iou_type)) <= self.tolerance(iou_type)

    @property
    def passed(self) -> bool:
        """Whether all AP agree."""
        return all(map(self.passes, self.published))

    def is_of(self, other: Report) -> bool:
        """Whether both are of the same weights, data and settings, by the same version."""
        names = ("name", "weights", "data", "overrides", "version", "published")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def to_json(reports: Sequence[Report]) -> str:
    """Return reports as a JSON list, with a field `passed`."""
    return json.dumps([{**dataclasses.asdict(report), "passed": report.passed} for report in reports], indent=2) + "\n"


def read_json(path: Path) -> list[Report]:
    """Return the reports of a file. Raises DataError if it is not one that `to_json` wrote."""
    try:
        entries = json.loads(path.read_text())
        reports = [Report(**{name: value for name, value in entry.items() if name != "passed"}) for entry in entries]
        to_markdown(reports)  # fails if a number is missing
        return reports
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path} is not a report of `mrcnn verify`; give a report.json") from None


def to_markdown(reports: Sequence[Report]) -> str:
    """Return a table of published and measured AP, and how they were measured."""
    lines = [
        "| weights | AP of | published | measured | difference | tolerance | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        lines += _rows(report)
    lines += ["", RULES, ""]
    for report in reports:
        part = f"{report.images} images" if report.deviations else f"all {report.images} images"
        lines.append(
            f"- {report.name}: {part}, {report.seconds:.0f} s, {report.date}, {report.hardware}; {report.software};"
            f" SHA-256 of the weights {report.weights[:16]}, of the data {report.data}; `{report.command}`"
        )
    return "\n".join(lines) + "\n"


def _rows(report: Report) -> Iterator[str]:
    for iou_type, published in report.published.items():
        result = "pass" if report.passes(iou_type) else "**fail**"
        yield (
            f"| {report.name} | {NAMES[iou_type]} | {published:.1f} | {report.measured[iou_type]:.2f} |"
            f" {report.difference(iou_type):+.2f} | {report.tolerance(iou_type):.2f} | {result} |"
        )


def published_ap(entry: zoo.ZooEntry) -> dict[str, float]:
    """Return the published AP in percent by iou_type."""
    values = {"bbox": entry.box_ap, "segm": entry.mask_ap, "keypoints": entry.keypoint_ap}
    return {iou_type: value for iou_type, value in values.items() if value is not None}


def table(reports: Sequence[Report]) -> str:
    """Return a table of all published detection weights, with the reports on each or "not yet reported"."""
    lines = ["| weights | data | published AP | measured AP |", "|---|---|---|---|"]
    for entry in zoo.ENTRIES:
        if published := published_ap(entry):
            measured = "; ".join(_summary(report) for report in reports if report.name == entry.name)
            row = (entry.name, entry.data, _numbers(published), measured or "not yet reported")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _summary(report: Report) -> str:
    part = f", {report.images} images" if report.deviations else ""
    result = "pass" if report.passed else "**fail**"
    return f"{_numbers(report.measured)}: {result} ({report.version}{part}, {report.date})"


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{NAMES[iou_type]} {value:.1f}" for iou_type, value in values.items())
