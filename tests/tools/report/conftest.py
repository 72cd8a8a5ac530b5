"""Fixtures: scores and analysis of the fake results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrcnn_jax.evaluation import coco_metrics
from mrcnn_jax.evaluation.analysis import Analysis
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_metrics import Scores


@pytest.fixture(scope="session")
def scores(made: Path) -> Scores:
    records = json.loads((made / "results.json").read_text())
    return coco_metrics.score(made / "annotations.json", records, iou_types=("bbox", "segm", "keypoints"))


@pytest.fixture(scope="session")
def analysis(scores: Scores) -> Analysis:
    return analyze(scores)
