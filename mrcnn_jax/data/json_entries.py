"""Validation of the lists of a COCO JSON: entries are objects with the required fields and unique integer ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.errors import format_value

Entry = dict[str, Any]

_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def validate_entries(
    name: str, entries: Iterable[Any], ids: Sequence[str], others: Sequence[str] = ()
) -> tuple[list[Entry], list[Refusal]]:
    """Return the valid entries of the list `name`, and refusals of all others.

    Args:
      name: `images`, `annotations` or `categories`.
      entries: the list. Of entries with the same `id` the first is valid.
      ids: required fields that are integers of 64 bits, `id` among them.
      others: further required fields, of any type.
    """
    valid: dict[int, Entry] = {}
    refusals = []
    for position, entry in enumerate(entries):
        if fault := _find_fault(name, entry, ids, others):
            refusals.append(_refusal(name, position, entry, *fault))
        elif valid.setdefault(entry["id"], entry) is not entry:
            kind = f"duplicate {_SINGULAR[name]} ids"
            refusals.append(_refusal(name, position, entry, kind, "", "give each entry a unique id"))
    return list(valid.values()), refusals


def is_id(value: object) -> bool:
    """Whether this is an integer of 64 bits, and not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def _find_fault(name: str, entry: Any, ids: Sequence[str], others: Sequence[str]) -> tuple[str, str, str] | None:
    """Return kind of fault, detail and advice; None for a valid entry."""
    if type(entry) is not dict:
        return f"entries of {name!r} that are not objects", "", f"write objects with {', '.join((*ids, *others))}"
    for field in ids:
        if field not in entry:
            break
        if not is_id(entry[field]):
            advice = "write integers of at most 64 bits, without quotes or decimals"
            return "ids that are not integers", f"{field} {format_value(entry[field])}", advice
    missing = [field for field in (*ids, *others) if field not in entry]
    if missing:
        return f"entries of {name!r} with missing fields", ", ".join(missing), "add the fields"
    return None


def _refusal(name: str, position: int, entry: Any, kind: str, detail: str, advice: str) -> Refusal:
    """Name the entry by its id, or by its position in the list if it has none."""
    fields = entry if isinstance(entry, dict) else {}
    own_id, image_id = (i if is_id(i) else None for i in (fields.get("id"), fields.get("image_id")))
    item = f"number {position + 1} of {name!r}" if own_id is None else f"{_SINGULAR[name]} {own_id}"
    if not isinstance(entry, dict):
        item += f" ({format_value(entry)})"
    item += f": {detail}" if detail else ""
    if name == "annotations":
        return Refusal(kind, item, advice, image_id, own_id)
    return Refusal(kind, item, advice, own_id if name == "images" else image_id)
