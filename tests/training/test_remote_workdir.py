"""A whole run in a bucket: --workdir=gs://..."""

from __future__ import annotations

import json
import logging

import jax
import numpy as np
import pytest
from etils import epath
from support.gcs_store import BUCKET, serve
from support.launch import free_port, launch, write_recipe

from mrcnn_jax.training.checkpoint import load_variables

pytest.importorskip("gcp_storage_emulator", reason="the emulator of a store comes with the extra `test`")
WORKDIR = f"gs://{BUCKET}/runs/tiny"


@pytest.mark.slow
def test_run_in_a_bucket_is_the_run_in_a_folder(finished_run, tmp_path, monkeypatch):
    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    recipe = write_recipe(finished_run.config, tmp_path / "recipe.py")
    train = ["train.py", f"--config={recipe}", f"--workdir={WORKDIR}"]
    with serve(free_port()) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with launch([*train, "--config.train.steps=7"], tmp_path / "first", devices=2) as job:
            assert "step 7/7" in job.succeed()
        with launch(train, tmp_path / "second", devices=2) as job:
            assert "step 7 of 10" in job.succeed()
        lines = (epath.Path(WORKDIR) / "metrics.jsonl").read_text().splitlines()
        _, variables = load_variables(WORKDIR)
        scores = json.loads((epath.Path(WORKDIR) / "evaluation" / "metrics.json").read_text())
    local = [json.loads(line) for line in (finished_run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in map(json.loads, lines)] == [
        (row["step"], row["loss"]) for row in local
    ]
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(finished_run.state.params))
    assert scores == json.loads((finished_run.workdir / "evaluation" / "metrics.json").read_text())
