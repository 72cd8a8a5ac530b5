"""A whole page: one file that needs no network, and in which nothing is run but one script of ours, or nothing."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from mrcnn_jax.tools.pages.html import Child, Html, join, tag

# Nothing is loaded, whatever a name in the data may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, sheet: Path, *body: Child, script: Path | None = None) -> Html:
    """The page of `body` with the common style sheet and one of its own.

    The browser is told to run `script`, by the hash of its text, and no other.
    """
    policy, scripts = _POLICY, []
    if script is not None:
        text = script.read_text()
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy, scripts = f"{_POLICY}; script-src 'sha256-{digest}'", [tag("script", Html(text))]
    style = Path(__file__).with_name("base.css").read_text() + sheet.read_text()
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    ]
    page = tag("html", tag("head", head), tag("body", tag("main", *body), scripts), lang="en")
    return join(Html("<!doctype html>\n"), page)
