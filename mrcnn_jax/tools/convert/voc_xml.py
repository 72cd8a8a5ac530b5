"""The XML files of VOC, and of the many tools that write something like them.

XML can name other files and entities that grow without bound; a file that declares anything of this kind is refused
before it is read further.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from mrcnn_jax.tools.convert.files import Rejected


class VOCObject(NamedTuple):
    """One <object>."""

    where: str  # for messages: the file, and which of its objects
    name: str
    box: tuple[float, float, float, float] | None  # as written: xmin ymin xmax ymax; None: not four finite numbers
    difficult: bool


class Record(NamedTuple):
    """One file."""

    path: Path
    file_name: str  # of the image, without folders; empty where it is not said
    size: tuple[int, int] | None  # height and width; None where they are not said, or zero
    things: tuple[VOCObject, ...]


def read(path: Path) -> Record:
    """Raises Rejected for what is no XML, has a document type, or has objects without a name."""
    root = _tree(path)
    if root.tag != "annotation":
        raise Rejected("files that are no VOC annotations", f"{path} (<{root.tag}>)", "take them out")
    things = tuple(
        VOCObject(
            f"{path.name} object {i}", _name(path, i, thing), _box(thing), _text(thing, "difficult") in ("1", "true")
        )
        for i, thing in enumerate(root.findall("object"), 1)
    )
    file_name = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    sides = [_number(_text(root, f"size/{side}")) for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(math.isfinite(s) and s >= 1 for s in sides) else None
    return Record(path, file_name, size, things)


def _tree(path: Path) -> ElementTree.Element:
    """The parsed file. The parser calls the builder for each part, so that a document type can stop both."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def stop(*_: object) -> NoReturn:
        advice = "annotations need none, and it can make a parser read other files: take it out"
        raise Rejected("XML files with a document type", path, advice)

    parser.StartDoctypeDeclHandler = stop
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except (expat.ExpatError, OSError, ValueError, LookupError) as error:  # the last two: unknown encodings
        raise Rejected("XML files that cannot be read", f"{path} ({error})", "mend or remove them") from None


def _name(path: Path, number: int, thing: ElementTree.Element) -> str:
    name = _text(thing, "name")
    if not name:
        raise Rejected("objects without a name", f"{path} object {number}", "name them, or take them out")
    return name


def _box(thing: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """Of the object itself, not of its parts."""
    sides = [_number(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    return (sides[0], sides[1], sides[2], sides[3]) if all(map(math.isfinite, sides)) else None


def _text(element: ElementTree.Element, path: str) -> str:
    """Of a child, without space around it; empty where there is none."""
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    """NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
