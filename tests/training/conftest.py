"""A tiny Mask R-CNN on tiny procedural images, and one finished training run that several tests look at."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import programs, tiny

from mrcnn_jax.config import Config, ModelConfig


class Run(NamedTuple):
    """A run that has been trained to its end."""

    config: Config
    workdir: Path
    state: Any
    output: str


@pytest.fixture(scope="session")
def tiny_config(tiny_model_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny.config(tiny_model_config, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", autouse=True)
def shared_programs() -> Iterator[None]:
    """Runs of the same network in this process share its train step."""
    with pytest.MonkeyPatch.context() as patch:
        programs.share_train_steps(patch.setattr)
        yield


@pytest.fixture(scope="session")
def finished_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny recipe, trained on both virtual devices without interruption."""
    from mrcnn_jax.training.run import train

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()) as output, programs.first_use():
        state = train(tiny_config, workdir)
    return Run(tiny_config, workdir, state, output.getvalue())
