"""The documentation site: builds without warnings, is complete, and needs no network."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mrcnn_jax.config import Config

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return a function that returns the text of a page."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    def page(name: str) -> str:
        return html.unescape(re.sub(r"<[^>]+>", "", (folder / name).read_text()))

    return page


@pytest.fixture(scope="module")
def links():
    """Import the mkdocs hook that rewrites links."""
    spec = importlib.util.spec_from_file_location("site_links", ROOT / "docs" / "links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_documents_public_names(site):
    text = site("reference.html")
    assert "read_image" in text
    assert "(n, 4), x0 y0 x1 y1 in pixels of the original image" in text  # the comment of a field


def test_configuration_lists_every_field(site):
    text = site("configuration.html")
    headings = re.findall(r"^(\w[\w., ]*)¶$", text, re.M)
    names = {name for heading in headings for name in heading.split(", ")}
    config = Config()
    assert {
        "model",
        "model.backbone",
        "model.keypoint",
        "data.train",
        "data.eval",
        "optimizer",
        "train",
        "eval",
    } <= names
    for part in (config.train, config.optimizer, config.eval, config.data, config.model.box):
        missing = [field.name for field in dataclasses.fields(part) if not re.search(rf"^{field.name}$", text, re.M)]
        assert not missing
    assert "images of one bucket" in text  # the comment beside eval.batch_size


def test_repository_files_are_in_the_site(site):
    assert "def get_config()" in site("repository/configs/quickstart.py.html")
    assert "ROIAlign" in site("repository/benchmarks/RESULTS.html")


def test_links_are_rewritten_except_in_code(links):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="data.md"))
    text = "[a](../benchmarks/RESULTS.md#x) [b](../mrcnn_jax/losses.py) [c](recipes.md) [d](#here) `[e](f)`"
    assert links.on_page_markdown(text, page=page) == (
        "[a](repository/benchmarks/RESULTS.md#x) [b](repository/mrcnn_jax/losses.py.md) [c](recipes.md) [d](#here)"
        " `[e](f)`"
    )
    page.file.src_uri = "repository/README.md"
    assert links.on_page_markdown("[data](docs/data.md)", page=page) == "[data](../data.md)"


def test_broken_links_and_external_resources_fail_the_build(links):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="data.md"))
    with pytest.raises(links.PluginError, match=r"docs/data\.md links to \.\./nothing\.py: no such file"):
        links.on_page_markdown("[a](../nothing.py)", page=page)
    links.on_post_page('<a href="https://example.org">a link fetches nothing</a><img src="a.png">', page=page)
    for fetching in ('<script src="https://example.org/a.js">', '<link rel="stylesheet" href=//example.org/a.css>'):
        with pytest.raises(links.PluginError, match=r"data\.md would fetch"):
            links.on_post_page(fetching, page=page)
