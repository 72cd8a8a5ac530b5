"""The made-up results, analysed once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import fake_results

from mrcnn_jax.evaluation import coco
from mrcnn_jax.evaluation.analysis import Analysis, analyse
from mrcnn_jax.evaluation.coco import Scores


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, annotations.json and results.json."""
    folder = tmp_path_factory.mktemp("report") / "made"
    fake_results.make(folder)
    return folder


@pytest.fixture(scope="session")
def scores(made: Path) -> Scores:
    records = json.loads((made / "results.json").read_text())
    return coco.score(made / "annotations.json", records, iou_types=("bbox", "segm", "keypoints"))


@pytest.fixture(scope="session")
def analysis(scores: Scores) -> Analysis:
    return analyse(scores)
