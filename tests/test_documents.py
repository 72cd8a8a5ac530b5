"""Files, names and tests that the documents mention exist; all state one version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
DOCUMENTS = [ROOT / "README.md", *GUIDES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "RESULTS.md"]
TEST = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS[:-1], ids=lambda path: path.name)  # the last one is a log
def test_mentioned_tests_exist(document):
    for file, test in TEST.findall(document.read_text()):
        found = [path for path in (ROOT / "tests").rglob(Path(file).name) if path.as_posix().endswith(f"/{file}")]
        assert found, f"{document.name} names {file}"
        assert not test or any(f"def {test}(" in path.read_text() for path in found), f"{document.name} names {test}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document):
    broken = [link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()]
    assert not broken


def test_files_and_names_of_the_contributors_guide_exist():
    """Paths are relative to the clone, the package, or the folder that the sentence is about."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    sources = [path for folder in ("mrcnn_jax", "tests") for path in (ROOT / folder).rglob("*.py")]
    files = {file for file in re.findall(r"`([\w/]+\.py)`", text) if "NAME" not in file}
    assert files
    assert not [file for file in files if not any(path.as_posix().endswith(f"/{file}") for path in sources)]
    names = set(re.findall(r"`(_?[A-Z]\w+|_\w+)`", text)) - {"NAME"}
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in sources)))
    assert {name for name in names if "NAME" not in name} <= words


def test_all_files_state_one_version():
    stated = {
        re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]
        for file, pattern in [
            ("mrcnn_jax/__init__.py", r'^__version__ = "(.+)"$'),
            ("CITATION.cff", r"^version: (.+)$"),
            ("CHANGELOG.md", r"^## \[(\d.*?)\]"),
        ]
    }
    assert len(stated) == 1
