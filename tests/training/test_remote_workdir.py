"""A run with its work directory in a bucket: --workdir=gs://..."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from support import linear
from support.gcs_store import BUCKET, serve
from support.launch import LINEAR_GRADIENTS, free_port, launch, write_recipe

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.config import Config
from mrcnn_jax.training.train import train

pytest.importorskip("gcp_storage_emulator", reason="the emulator of a store comes with the extra `test`")
WORKDIR = f"gs://{BUCKET}/runs/tiny"


@pytest.mark.slow
def test_run_in_a_bucket_equals_one_in_a_folder(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parameters of the network, with the gradients of a linear model, because only files are tested."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    linear.replace_gradients(monkeypatch.setattr)
    folder = tmp_path / "run"
    state = train(tiny_config, folder)

    recipe = write_recipe(tiny_config, tmp_path / "recipe.py")
    command = ["train.py", f"--config={recipe}", f"--workdir={WORKDIR}"]
    with serve(free_port()) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        first, second = tmp_path / "first", tmp_path / "second"
        with launch([*command, "--config.train.steps=7"], first, devices=2, prelude=LINEAR_GRADIENTS) as job:
            assert "step 7/7" in job.succeed()
        with launch(command, second, devices=2, prelude=LINEAR_GRADIENTS) as job:
            assert "step 7 of 10" in job.succeed()
        lines = (epath.Path(WORKDIR) / "metrics.jsonl").read_text()
        _, variables = load_variables(WORKDIR)
        scores = json.loads((epath.Path(WORKDIR) / "evaluation" / "metrics.json").read_text())

    assert steps_and_losses(lines) == steps_and_losses((folder / "metrics.jsonl").read_text())
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(state.params))
    assert scores == json.loads((folder / "evaluation" / "metrics.json").read_text())


def steps_and_losses(lines: str) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in map(json.loads, lines.splitlines())]
