"""Documentation of dataclass fields from the comments beside them, where this project describes shapes and units.

A griffe extension for mkdocstrings, and an mkdocs hook that writes the tables of configuration fields.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from typing import Any

import griffe

SETTINGS = "<!-- tables of all settings -->"
MODULES = ("field_types", "model_schema", "schema")  # of mrcnn_jax.config
_RANGE = re.compile(r"Annotated\[(\w+), ['\"](.+?)['\"]\]")  # a number and its interval
_PATH = re.compile(r"Annotated\[str, os\.path\.expanduser\]")

Members = dict[str, griffe.Object]  # classes and type aliases of the configuration, by name


class FieldComments(griffe.Extension):
    """Uses the comments above a field and on its lines as its docstring."""

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
    """An mkdocs hook: replaces `SETTINGS` with the tables of all configuration fields."""
    return markdown.replace(SETTINGS, "\n\n".join(_tables())) if SETTINGS in markdown else markdown


def _tables() -> Iterator[str]:
    """A heading and a table for each part of the configuration, with the names that overrides use."""
    members = _load()
    for part, names in _parts(members, "Config", "").items():
        rows = [_row(members, field) for field in _fields(members[part])]
        heading = ", ".join(f"`{name}`" for name in names if name) or "The recipe"
        table = ["| field | type | default | meaning |", "|---|---|---|---|", *rows]
        yield f"## {heading}\n\n{members[part].docstring.value}\n\n" + "\n".join(table)


def _load() -> Members:
    """The classes and module attributes that the modules of the configuration define."""
    members: Members = {}
    for module in MODULES:
        tree = griffe.load(f"mrcnn_jax.config.{module}", extensions=griffe.load_extensions(FieldComments))
        members |= {name: member for name, member in tree.members.items() if not member.is_alias}
    return members


def _parts(members: Members, part: str, name: str) -> dict[str, list[str]]:
    """The names of a configuration class and of all those in its fields, each with its dotted names."""
    parts = {part: [name]}
    for field in _fields(members[part]):
        for inner in _inner(members, field):
            for other, names in _parts(members, inner, f"{name}.{field.name}".strip(".")).items():
                parts.setdefault(other, []).extend(names)
    return parts


def _fields(part: griffe.Object) -> list[griffe.Attribute]:
    return [field for field in part.attributes.values() if "property" not in field.labels]


def _inner(members: Members, field: griffe.Attribute) -> list[str]:
    """The configuration classes in the type of a field."""
    return [name for name in str(field.annotation).split(" | ") if name in members and members[name].is_class]


def _row(members: Members, field: griffe.Attribute) -> str:
    values = {name: str(member.value) for name, member in members.items() if member.is_attribute}
    inner, default = _inner(members, field), str(field.value)
    default = "the fields below" if inner and default != "None" else f"`{values.get(default, default)}`"
    meaning = field.docstring.value if field.docstring else ""
    kind = re.sub(r"\w+", lambda word: values.get(word[0], word[0]), str(field.annotation))
    kind = _PATH.sub("path", _RANGE.sub(r"\1 in \2", kind))
    return f"| `{field.name}` | `{kind}` | {default} | {meaning} |"
