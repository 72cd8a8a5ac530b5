"""Where a training begins: random variables, another run of ours, or a file of somebody's weights."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
from etils import epath

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.checkpoints.workdir import CONFIG, resumable_config
from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError, WeightsError
from mrcnn_jax.models.mask_rcnn import Variables, build_model, init_variables
from mrcnn_jax.weights import efficientnet_names, transfer
from mrcnn_jax.weights.preprocessing import apply_preprocessing, preprocessing_of

log = logging.getLogger(__name__)


def starting_point(config: Config, workdir: epath.PathLike, key: jax.Array) -> tuple[Config, Variables | None]:
    """The configuration of a run with all that its initial weights decide, and its variables; None for the variables
    where `workdir` has a checkpoint to go on from, which needs the file of the weights no more.

    Raises ConfigError for an `init` that does not exist, cannot be read or does not fit the model.
    """
    before = resumable_config(workdir)
    if before is None:
        return initial_variables(config, key)
    if config.init:
        config = dataclasses.replace(config, model=apply_preprocessing(config.model, preprocessing_of(before.model)))
    return config, None


def initial_variables(config: Config, key: jax.Array) -> tuple[Config, Variables]:
    """Random variables, or those of `config.init`: a file that `weights.source.load_weights` reads,
    `efficientnet_names.PACKAGE_INIT`, or the workdir of another run.

    The configuration gets the preprocessing, stride and epsilon that go with the weights.
    """
    if not config.init:
        return config, init_variables(build_model(config.model), key)
    try:
        if config.init == efficientnet_names.PACKAGE_INIT:
            model, variables = transfer.init_from_file(
                config.model, efficientnet_names.weights_file(), key, config.init
            )
        elif (epath.Path(config.init) / CONFIG).is_file():
            run, variables = load_variables(config.init)
            averaged = ", the averaged weights (train.ema_decay)" if run.train.ema_decay else ""
            log.info("%s: the newest checkpoint%s", config.init, averaged)
            model, variables = transfer.init_from_run(config.model, run.model, variables, key, config.init)
        elif Path(config.init).is_file():
            model, variables = transfer.init_from_file(config.model, config.init, key)
        else:
            raise ConfigError(f"init: there is neither a file nor a workdir {config.init}")
    except WeightsError as error:
        raise ConfigError(f"init: {error}") from error
    return dataclasses.replace(config, model=model), variables
