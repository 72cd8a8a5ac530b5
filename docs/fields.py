"""The fields of dataclasses in the documentation: the comments beside them, where this project says shapes and units.

An extension of griffe, which reads the sources for mkdocstrings, and a hook of mkdocs for the tables of settings.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from typing import Any

import griffe

SETTINGS = "<!-- tables of all settings -->"
_RANGE = re.compile(r"Annotated\[(\w+), ['\"](.+?)['\"]\]")  # a number and its interval
_PATH = re.compile(r"Annotated\[str, os\.path\.expanduser\]")


class FieldComments(griffe.Extension):
    """Gives a field without a docstring the comments above it and on its own lines."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is None and attr.parent is not None and attr.parent.is_class and attr.lineno is not None:
            lines = attr.lines_collection[attr.filepath]
            first = last = attr.lineno - 1
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            comments = [*lines[first:last], *_comments(lines[last : attr.endlineno])]
            text = " ".join(comment.strip().removeprefix("#").strip() for comment in comments)
            if text:
                attr.docstring = griffe.Docstring(text, parent=attr)


def _comments(lines: list[str]) -> list[str]:
    """The comments in a statement."""
    source = "\n".join(line.strip() for line in lines) + "\n"
    return [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]


def on_page_markdown(markdown: str, **_: object) -> str:
    """A hook of mkdocs: tables of all settings stand in the place of `SETTINGS`."""
    return markdown.replace(SETTINGS, "\n\n".join(_tables())) if SETTINGS in markdown else markdown


def _tables() -> Iterator[str]:
    """A heading and a table for each part of the configuration, under the names that overrides use."""
    tree = griffe.load("mrcnn_jax.config.schema", extensions=griffe.load_extensions(FieldComments))
    for part, names in _parts(tree, "Config", "").items():
        rows = [_row(tree, field) for field in _fields(tree, part)]
        heading = ", ".join(f"`{name}`" for name in names if name) or "The recipe"
        table = ["| field | type | default | meaning |", "|---|---|---|---|", *rows]
        yield f"## {heading}\n\n{tree[part].docstring.value}\n\n" + "\n".join(table)


def _parts(tree: griffe.Module, part: str, name: str) -> dict[str, list[str]]:
    """A dataclass of settings and those in its fields, from the outside in, with the names that lead to them."""
    found = {part: [name]}
    for field in _fields(tree, part):
        for inner in _inner(tree, field):
            for other, names in _parts(tree, inner, f"{name}.{field.name}".strip(".")).items():
                found.setdefault(other, []).extend(names)
    return found


def _fields(tree: griffe.Module, part: str) -> list[griffe.Attribute]:
    return [field for field in tree[part].attributes.values() if "property" not in field.labels]


def _inner(tree: griffe.Module, field: griffe.Attribute) -> list[str]:
    """The dataclasses of settings in the type of a field."""
    return [name for name in str(field.annotation).split(" | ") if name in tree.classes]


def _row(tree: griffe.Module, field: griffe.Attribute) -> str:
    inner, default = _inner(tree, field), str(field.value)
    shown = "the fields below" if inner and default != "None" else f"`{default}`"
    meaning = field.docstring.value if field.docstring else ""
    aliases = {name: str(alias.value) for name, alias in tree.attributes.items()}
    kind = re.sub(r"\w+", lambda word: aliases.get(word[0], word[0]), str(field.annotation))
    kind = _PATH.sub("path", _RANGE.sub(r"\1 in \2", kind))
    return f"| `{field.name}` | `{kind}` | {shown} | {meaning} |"
