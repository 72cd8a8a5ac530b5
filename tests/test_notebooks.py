"""The notebooks have no outputs, and run from top to bottom in a fresh clone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# Far below the scores of our runs, and above those of an untrained network.
AT_LEAST = {
    "quickstart": {"segm/AP50": 0.2},
    "mine/run": {"segm/AP50": 0.2},
    "puppets": {"segm/AP50": 0.4, "keypoints/AP50": 0.4},
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestStoredNotebook:
    def test_format_is_valid(self, path):
        nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
        nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))

    def test_has_no_outputs(self, path):
        content = json.loads(path.read_text())
        assert set(content["metadata"]) <= {"kernelspec", "language_info"}
        for cell in content["cells"]:
            assert not cell["metadata"]
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None

    def test_linked_files_exist(self, path):
        cells = json.loads(path.read_text())["cells"]
        text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert not [link for link in LINK.findall(text) if not (path.parent / link).exists()]


def test_first_notebook_begins_with_the_installation():
    cells = json.loads(NOTEBOOKS[0].read_text())["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert '%pip install --quiet "mrcnn-jax[' in "".join(first["source"])


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A temporary folder that looks like a clone, for the files that notebooks write."""
    (tmp_path / "notebooks").mkdir()
    for name in ("configs", "mrcnn_jax", "train.py", "predict.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
    monkeypatch.delenv("XLA_FLAGS")  # the notebooks choose their devices
    if "MRCNN_NUCLEI" not in os.environ:
        monkeypatch.setenv("MRCNN_NUCLEI", str(ROOT.parent / "shared" / "data" / "nuclei"))
    return tmp_path


@pytest.mark.slow
def test_notebooks_run(clone):
    nbformat = pytest.importorskip("nbformat", reason="the extra `test` is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra `test` is not installed")
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(clone / "notebooks")}}
        nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    for run, least in AT_LEAST.items():
        metrics = json.loads((clone / "runs" / "notebooks" / run / "evaluation" / "metrics.json").read_text())
        for name, value in least.items():
            assert metrics[name] > value
