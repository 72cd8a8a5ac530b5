"""Tests of mask targets from the crops of a batch against exact polygon rasters, on 80 photographs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def compared(shared_data: Callable[[str], Path]) -> Any:
    """What `benchmarks/mask_crops.py` measures."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "mask_crops.py"
    spec = importlib.util.spec_from_file_location("mask_crops", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark.compare(shared_data("coco_by") / "annotations.json")


@pytest.mark.medium
def test_targets_from_crops_are_close_to_exact_ones(compared):
    assert len(compared.crops) == 707
    assert compared.crops.mean() >= 0.98
    assert np.quantile(compared.crops, 0.05) >= 0.955
    # Crops lose at most as much again as pycocotools' rule of what a polygon covers, which takes part in both.
    assert 1 - compared.crops.mean() <= 2 * (1 - compared.fine.mean())


@pytest.mark.parametrize("area", [16**2, 32**2])
def test_small_instances_lose_no_more_than_others(compared, area):
    small = compared.crops[compared.areas < area]
    assert len(small) > 100
    assert small.mean() >= 0.98
    assert np.quantile(small, 0.05) >= 0.955
