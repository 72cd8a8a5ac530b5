"""The tables of the paper: rows are valid recipes at both scales, and differ only in the compared fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.config import load_config, validate
from mrcnn_jax.errors import ConfigError
from projects.paper_tables import coco, small, tables

RECIPE = Path(__file__).resolve().parents[3] / "projects" / "paper_tables" / "config.py"
ROWS = [(table, row) for table in tables.TABLES.values() for row in table.rows]
SCALES = {"coco": coco, "small": small}


def name(value: Any) -> str:
    return getattr(value, "name", str(value))


def differences(first: Any, second: Any, path: str) -> set[str]:
    """Return the dotted names of the fields that differ between two trees of dataclasses."""
    if type(first) is not type(second) or not dataclasses.is_dataclass(first):
        return set() if first == second else {path}
    return set().union(
        *(
            differences(getattr(first, field.name), getattr(second, field.name), f"{path}.{field.name}")
            for field in dataclasses.fields(first)
        )
    )


def test_all_tables_are_defined():
    counts = {table.name: len(table.rows) for table in tables.TABLES.values()}
    assert counts == {"2a": 5, "2b": 2, "2c": 5, "2d": 2, "2e": 3, "agnostic": 2, "3": 3, "4": 2, "5": 4, "6": 2}


@pytest.mark.parametrize("table", tables.TABLES.values(), ids=name)
def test_columns_are_the_published_metrics(table):
    assert len({row.name for row in table.rows}) == len(table.rows)
    assert table.row(table.reference) in table.rows
    for row in table.rows:
        assert row.published.keys() <= set(table.columns)
        assert all(20 < value < 100 for value in row.published.values())
        for kind in {metric.split("/")[0] for metric in row.published}:
            assert {"bbox": True, "segm": row.mask, "keypoints": row.keypoints}[kind]
    assert set(table.columns) == {metric for row in table.rows for metric in row.published}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize(("table", "row"), ROWS, ids=name)
def test_every_row_is_a_valid_recipe(table, row, scale):
    if scale is small and not small.is_available(row):
        with pytest.raises(ConfigError, match="has no small recipe"):
            scale.row(table.name, row.name)
        return
    config = scale.row(table.name, row.name)
    validate(dataclasses.replace(config, init="FILE"))
    assert config.name == f"table{table.name}_{row.name}"
    assert (config.model.features, config.model.mask is not None, config.model.num_keypoints > 0) == (
        *(row.features, row.mask, row.keypoints),
    )


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize(("table", "row"), ROWS, ids=name)
def test_rows_differ_only_in_the_compared_fields(table, row, scale):
    if scale is small and not small.is_available(row):
        return
    reference, config = scale.row(table.name, table.reference), scale.row(table.name, row.name)
    found = differences(reference.model, config.model, "model")
    assert all(field.startswith(table.varied_fields) for field in found), found
    assert bool(found) == (row.name != table.reference)
    rest = differences(dataclasses.replace(reference, model=config.model, name=config.name), config, "config")
    expected = set()
    if scale is coco and row.backbone == "X101":
        expected = {"config.train.batch_size", "config.optimizer.learning_rate"}  # as in the paper, because of memory
    elif scale is small:
        base = table.row(table.reference)
        expected = ({"config.init"} if row.backbone != base.backbone else set()) | (
            {"config.train.steps"} if row.features != base.features else set()
        )
    assert rest == expected


def test_paper_setting():
    c4, fpn, x101 = (coco.row("2a", row) for row in ("r50_c4", "r50_fpn", "x101_fpn"))
    assert (c4.model.roi.batch_size, c4.model.rpn.post_nms_top_k_test) == (64, 300)
    assert (fpn.model.roi.batch_size, fpn.model.rpn.post_nms_top_k_test) == (512, 1000)
    for config in (c4, fpn, x101):
        assert (config.train.steps, config.optimizer.milestones) == (160_000, (120_000,))
        assert (config.optimizer.weight_decay, config.optimizer.momentum) == (1e-4, 0.9)
        assert (config.data.shortest_edge_train, config.data.shortest_edge_eval) == ((800,), 800)
        assert config.model.roi.positive_fraction == 0.25
        assert len(config.model.anchors.aspect_ratios) * sum(map(len, config.model.anchors.sizes)) == 15
    assert (fpn.train.batch_size, fpn.optimizer.learning_rate) == (16, 0.02)
    assert (x101.train.batch_size, x101.optimizer.learning_rate) == (8, 0.01)
    persons = coco.row("5", "faster")
    assert (persons.train.steps, persons.optimizer.milestones) == (90_000, (60_000, 80_000))
    assert (min(persons.data.shortest_edge_train), max(persons.data.shortest_edge_train)) == (640, 800)
    assert "person_keypoints" in persons.data.train.annotations
    assert persons.data.min_keypoints == 1


@pytest.mark.parametrize(
    ("table", "row", "fields"),
    [
        ("2b", "softmax", {"mask.activation": "softmax"}),
        ("2c", "roi_pool_max", {"roi.pooling": "pool", "roi.reduce": "max"}),
        ("2c", "roi_warp_max", {"roi.pooling": "warp", "roi.reduce": "max"}),
        ("2c", "roi_warp_average", {"roi.pooling": "warp", "roi.reduce": "average"}),
        ("2c", "roi_align_max", {"roi.pooling": "align", "roi.reduce": "max", "roi.sampling_ratio": 2}),
        ("2d", "roi_pool", {"features": "c5", "roi.pooling": "pool", "roi.reduce": "max"}),
        ("2e", "mlp_2", {"mask.fc_layers": 2, "mask.conv_layers": 0}),
        ("2e", "mlp_3", {"mask.fc_layers": 3, "mask.conv_layers": 0}),
        ("agnostic", "class_agnostic", {"mask.class_agnostic": True}),
        ("3", "faster_r101_fpn", {"mask": None}),
        ("5", "mask_only", {"keypoint": None}),
        ("6", "roi_pool", {"roi.pooling": "pool", "mask": None}),
    ],
)
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_changes_of_rows(table, row, fields, scale):
    for path, value in fields.items():
        found: Any = scale.row(table, row).model
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


def test_metric_label():
    assert tables.metric_label("keypoints/APm") == "keypoint APm"


@pytest.mark.parametrize(("table", "row"), [("2f", ""), ("2c", "roi_wrap")])
def test_unknown_names_are_rejected(table, row):
    with pytest.raises(ConfigError, match=r"there are 2a, 2b|it has roi_pool_max, "):
        coco.row(table, row)


@pytest.mark.parametrize(("table", "row"), ROWS, ids=name)
def test_recipe_file_takes_a_row_as_argument(table, row):
    assert load_config(f"{RECIPE}:{table.name}_{row.name}") == coco.row(table.name, row.name)


def test_recipe_file_names_an_unknown_row():
    with pytest.raises(ConfigError, match=r"table 2c has no row 'roi_wrap'"):
        load_config(f"{RECIPE}:2c_roi_wrap")
