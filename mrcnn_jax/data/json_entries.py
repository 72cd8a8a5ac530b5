"""Entries of the lists of a COCO JSON: objects that have their fields, and ids that are whole numbers, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.errors import shown

Entry = dict[str, Any]
Fault = tuple[str, str, str]  # what is wrong, with which field, what to do

_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def validate_entries(
    name: str, entries: Iterable[Any], ids: Sequence[str], others: Sequence[str] = ()
) -> tuple[list[Entry], list[Refusal]]:
    """Those of the list `name` that are objects with all the fields, of which `ids` are whole numbers of 64 bits.

    Of entries with the same id the first stays. Everything else comes back as refusals.
    """
    kept: dict[int, Entry] = {}
    refusals = []
    for place, entry in enumerate(entries):
        if fault := _fault(name, entry, ids, others):
            refusals.append(_refusal(name, place, entry, fault))
        elif kept.setdefault(entry["id"], entry) is not entry:
            kind, advice = f"duplicate {_SINGULAR[name]} ids", "give each an id of its own"
            refusals.append(_refusal(name, place, entry, (kind, "", advice)))
    return list(kept.values()), refusals


def is_id(value: object) -> bool:
    """A whole number of 64 bits; true and false are none."""
    return type(value) is int and -(2**63) <= value < 2**63


def _fault(name: str, entry: Any, ids: Sequence[str], others: Sequence[str]) -> Fault | None:
    if type(entry) is not dict:
        return f"entries of {name!r} that are no objects", "", f"write an object with {', '.join((*ids, *others))}"
    for field in ids:
        if field not in entry:
            break
        if not is_id(entry[field]):
            advice = "write them as numbers without quotes or decimals, of at most 64 bits"
            return "ids that are not whole numbers", f"{field} {shown(entry[field])}", advice
    else:
        if all(field in entry for field in others):
            return None
    return f"entries of {name!r} without one of {', '.join((*ids, *others))}", "", "add the field"


def _refusal(name: str, place: int, entry: Any, fault: Fault) -> Refusal:
    """Names the entry by its id if it has one, else by its place in the list."""
    kind, field, advice = fault
    own = entry.get("id") if isinstance(entry, dict) else None
    culprit = f"{_SINGULAR[name]} {own}" if is_id(own) else f"number {place + 1} of {name!r}"
    if not isinstance(entry, dict):
        culprit += f" ({shown(entry)})"
    image_id = own if name == "images" else entry.get("image_id") if isinstance(entry, dict) else None
    return Refusal(
        kind,
        f"{culprit}: {field}" if field else culprit,
        advice,
        image_id if is_id(image_id) else None,
        own if name == "annotations" and is_id(own) else None,
    )
