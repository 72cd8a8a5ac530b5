"""Files, names and tests that the documents mention exist; all state one version."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from mrcnn_jax.cli import COMMANDS
from mrcnn_jax.config import Config
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor

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


def test_names_in_the_first_column_of_the_comparison_exist():
    """Fields of the configuration, commands, and attributes of predictors and predictions."""
    rows = (ROOT / "docs" / "coming_from.md").read_text().splitlines()
    codes = [code for row in rows if row.startswith("| `") for code in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    fields = [re.match(r"(?:model|data|train|eval|optimizer)\.[\w.]+", code) for code in codes]
    names = [match[0] for match in fields if match]
    assert len(names) > 20
    for name in names:
        kind = Config
        for part in name.split("."):
            hint = get_type_hints(kind)[part]
            kind = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), hint)
    commands = {code.split()[1] for code in codes if code.startswith("mrcnn ")}
    assert len(commands) > 5
    assert commands <= COMMANDS.keys()
    for kind, prefix in ((Predictor, "Predictor."), (Prediction, "result.")):
        attributes = [re.split(r"\W", code.removeprefix(prefix))[0] for code in codes if code.startswith(prefix)]
        assert attributes
        assert set(attributes) <= {*dir(kind), *get_type_hints(kind)}


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
