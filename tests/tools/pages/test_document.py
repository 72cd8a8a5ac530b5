"""The content security policy of a page."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from mrcnn_jax.tools.pages.document import document


def test_policy_allows_only_the_script(tmp_path: Path) -> None:
    stylesheet, script = tmp_path / "page.css", tmp_path / "page.js"
    stylesheet.write_text("p { color: red; }")
    script.write_text('document.title = "<é>";\n')
    page = document("A & B", stylesheet, "text", script=script)
    (run,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert run == script.read_text()
    digest = base64.b64encode(hashlib.sha256(run.encode()).digest()).decode()
    (policy,) = re.findall(r'Security-Policy" content="([^"]*)"', page)
    assert policy.replace("&#x27;", "'") == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert "<title>A &amp; B</title>" in page


def test_policy_without_script(tmp_path: Path) -> None:
    (tmp_path / "page.css").write_text("")
    page = document("A", tmp_path / "page.css", "text")
    assert "<script" not in page
    assert "script-src" not in page
