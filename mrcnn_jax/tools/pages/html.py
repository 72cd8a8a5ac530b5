"""HTML built from values: every text is escaped unless it was built here, so a name in a JSON file is never markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = {"meta", "input", "br"}


class Html(str):
    """Markup that is safe to use as it is."""

    __slots__ = ()


Child = str | int | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element. Attributes that are None are left out; `class_` is class, and `stroke_width` stroke-width."""
    written = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """The children in a row: markup as it is, anything else as text."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, (str, int)):
            parts.append(html.escape(str(child)))
        else:
            parts.append(str(join(*child)))
    return Html("".join(parts))
