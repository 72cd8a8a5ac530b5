"""Reader of the XML annotations of VOC and of labeling tools that write similar files.

Files with a document type are refused, because it can include other files and entities of unbounded size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.etree import ElementTree

from mrcnn_jax.tools.convert.files import ConversionError


class VOCObject(NamedTuple):
    """An <object>."""

    location: str  # for messages: the file, and the number of the object
    name: str
    box: tuple[float, ...] | None  # as written: xmin ymin xmax ymax; None: not four finite numbers
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
    objects = tuple(_object(path, i, obj) for i, obj in enumerate(root.findall("object"), 1))
    file_name = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    sides = _numbers(root, "size/height", "size/width")
    size = (int(sides[0]), int(sides[1])) if sides and min(sides) >= 1 else None
    return VOCAnnotation(path, file_name, size, objects)


class _TreeBuilder(ElementTree.TreeBuilder):
    """Builds the tree of a file without a document type."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def doctype(self, *_: object) -> NoReturn:
        """Raise ConversionError; called at the beginning of a document type."""
        advice = "annotations need none, and it could include other files: remove it"
        raise ConversionError("XML files with a document type", self._path, advice)


def _tree(path: Path) -> ElementTree.Element:
    """Parse a file, up to a document type if there is one."""
    try:
        return ElementTree.XML(path.read_bytes(), ElementTree.XMLParser(target=_TreeBuilder(path)))
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two for unknown encodings
        raise ConversionError("XML files that cannot be read", f"{path} ({error})", "correct or remove them") from None


def _object(path: Path, number: int, obj: ElementTree.Element) -> VOCObject:
    name = _text(obj, "name")
    if not name:
        raise ConversionError("objects without a name", f"{path} object {number}", "name or remove them")
    box = _numbers(obj, *(f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")))  # not of its parts
    return VOCObject(f"{path.name} object {number}", name, box, _text(obj, "difficult") in ("1", "true"))


def _text(element: ElementTree.Element, path: str) -> str:
    """Return the stripped text of a child; empty if there is no such child."""
    return (element.findtext(path) or "").strip()


def _numbers(element: ElementTree.Element, *paths: str) -> tuple[float, ...] | None:
    """Return the numbers in children; None unless all are finite."""
    try:
        numbers = tuple(float(_text(element, path)) for path in paths)
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
