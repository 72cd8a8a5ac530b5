"""Reader of the XML annotations of VOC and of labeling tools that write similar files.

Files with a document type are refused, because it can include other files and entities of unbounded size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from mrcnn_jax.tools.convert.files import ConversionError


class VOCObject(NamedTuple):
    """An <object>."""

    location: str  # for messages: the file, and the number of the object
    name: str
    box: tuple[float, float, float, float] | None  # as written: xmin ymin xmax ymax; None: not four finite numbers
    difficult: bool


class VOCAnnotation(NamedTuple):
    """The content of an XML file."""

    path: Path
    file_name: str  # of the image, without folders; empty if missing
    size: tuple[int, int] | None  # height and width; None if missing or zero
    objects: tuple[VOCObject, ...]


def read(path: Path) -> VOCAnnotation:
    """Read an XML file. Raises ConversionError for invalid files, document types, and objects without a name."""
    root = _tree(path)
    if root.tag != "annotation":
        raise ConversionError("files that are no VOC annotations", f"{path} (<{root.tag}>)", "remove them")
    objects = tuple(
        VOCObject(f"{path.name} object {i}", _name(path, i, obj), _box(obj), _text(obj, "difficult") in ("1", "true"))
        for i, obj in enumerate(root.findall("object"), 1)
    )
    file_name = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    sides = [_number(_text(root, f"size/{side}")) for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(math.isfinite(s) and s >= 1 for s in sides) else None
    return VOCAnnotation(path, file_name, size, objects)


def _tree(path: Path) -> ElementTree.Element:
    """Parse a file, up to a document type if there is one."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def stop(*_: object) -> NoReturn:
        advice = "annotations need none, and it could include other files: remove it"
        raise ConversionError("XML files with a document type", path, advice)

    parser.StartDoctypeDeclHandler = stop
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except (expat.ExpatError, OSError, ValueError, LookupError) as error:  # the last two for unknown encodings
        raise ConversionError("XML files that cannot be read", f"{path} ({error})", "correct or remove them") from None


def _name(path: Path, number: int, obj: ElementTree.Element) -> str:
    name = _text(obj, "name")
    if not name:
        raise ConversionError("objects without a name", f"{path} object {number}", "name or remove them")
    return name


def _box(obj: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """Return the box of an object, not of its parts; None if it has not four finite numbers."""
    sides = [_number(_text(obj, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    return (sides[0], sides[1], sides[2], sides[3]) if all(map(math.isfinite, sides)) else None


def _text(element: ElementTree.Element, path: str) -> str:
    """Return the stripped text of a child; empty if there is no such child."""
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    """Parse a number; NaN for other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan
