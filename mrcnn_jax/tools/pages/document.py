"""Complete HTML pages in one file, which load nothing and run at most one script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from mrcnn_jax.tools.pages.html import Child, Html, join, tag

# Browsers load nothing, even if a name in the data should be taken for markup.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, stylesheet: Path, *body: Child, script: Path | None = None) -> Html:
    """Return the page of `body` with base.css, a stylesheet of its own and a script.

    The content security policy allows `script` by its hash, and no other script.
    """
    policy, scripts = _POLICY, []
    if script is not None:
        text = script.read_text()
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy, scripts = f"{_POLICY}; script-src 'sha256-{digest}'", [tag("script", Html(text))]
    style = Path(__file__).with_name("base.css").read_text() + stylesheet.read_text()
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    ]
    page = tag("html", tag("head", head), tag("body", tag("main", *body), scripts), lang="en")
    return join(Html("<!doctype html>\n"), page)
