"""HTML elements. All text is escaped unless it is `Html`, so names in a JSON file are never taken for markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID_ELEMENTS = {"meta", "input", "br"}


class Html(str):
    """Escaped markup."""

    __slots__ = ()


Child = str | int | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """Return an element. Attributes that are None are left out; `class_` is class, `stroke_width` stroke-width."""
    written = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in _VOID_ELEMENTS else f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Return the concatenated children, with everything escaped that is not `Html`."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, (str, int)):
            parts.append(html.escape(str(child)))
        else:
            parts.append(str(join(*child)))
    return Html("".join(parts))
