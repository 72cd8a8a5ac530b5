"""A tiny Mask R-CNN on tiny procedural images, and one finished training run that several tests look at."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mrcnn_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
)


def make_config(model: ModelConfig, folder: Path) -> Config:
    """Ten steps of four images of 64 x 64 pixels, a checkpoint after every third; data and caches in `folder`."""
    return Config(
        name="tiny",
        model=model,
        data=DataConfig(
            root=str(folder / "shapes"),
            cache_dir=str(folder / "cache"),
            train=SplitConfig("train.json", "train"),
            eval=SplitConfig("val.json", "val"),
            shapes=ShapesConfig(train_images=16, eval_images=4, image_size=64),
            buckets=((64, 64),),
            shortest_edge_train=(64,),
            shortest_edge_eval=64,
            longest_edge=64,
            max_instances=8,
            mask_size=28,
        ),
        optimizer=OptimizerConfig(learning_rate=0.02, milestones=(), warmup_steps=2),
        train=TrainConfig(steps=10, batch_size=4, log_every=1, checkpoint_every=3, keep_checkpoints=2),
        eval=EvalConfig(batch_size=4, overlays=2),
    )


class Run(NamedTuple):
    """A run that has been trained to its end."""

    config: Config
    workdir: Path
    state: Any
    output: str


@pytest.fixture(scope="session")
def tiny_config(tiny_model_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tiny_model_config, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny recipe, trained on both virtual devices without interruption."""
    from mrcnn_jax.training.run import train

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        state = train(tiny_config, workdir)
    return Run(tiny_config, workdir, state, output.getvalue())
