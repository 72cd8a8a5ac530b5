"""Initial variables of a run: random, from a weight file, from another run, or from a release folder."""

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
from mrcnn_jax.weights import efficientnet_names, hub, reference_models, release, transfer, zoo, zoo_files
from mrcnn_jax.weights.preprocessing import apply_preprocessing, preprocessing_of
from mrcnn_jax.weights.pretrained import load_pretrained

log = logging.getLogger(__name__)

ZOO_PREFIX = "zoo:"  # in `config.init`, before the name of published weights


def resolve_init(config: Config, workdir: epath.PathLike, key: jax.Array) -> tuple[Config, Variables | None]:
    """Return the configuration with the fields that the initial weights determine, and the initial variables.

    The variables are None if `workdir` has a checkpoint to resume from; `config.init` is not read then.
    Raises ConfigError if `config.init` does not exist, cannot be read or does not fit the model.
    """
    previous = resumable_config(workdir)
    if previous is None:
        return initial_variables(config, key)
    if config.init:
        config = dataclasses.replace(config, model=apply_preprocessing(config.model, preprocessing_of(previous.model)))
    return config, None


def initial_variables(config: Config, key: jax.Array) -> tuple[Config, Variables]:
    """Return the configuration and the variables loaded from `config.init`, or random ones if it is empty.

    `config.init` is a weight file, "zoo:NAME" for published weights, `efficientnet_names.PACKAGE_INIT`, the work
    directory of another run, or a release folder, which may be on the Hugging Face Hub (`hub`). The configuration gets
    the preprocessing, stride and epsilon that go with the weights.
    Raises ConfigError if `config.init` does not exist, cannot be read or does not fit the model, and DownloadError.
    """
    if not config.init:
        return config, init_variables(build_model(config.model), key)
    try:
        if config.init == efficientnet_names.PACKAGE_INIT:
            model, variables = transfer.init_from_file(
                config.model, efficientnet_names.weights_file(), key, config.init
            )
        elif config.init.startswith(ZOO_PREFIX):
            entry = zoo.find(config.init.removeprefix(ZOO_PREFIX))
            preset = reference_models.preset(*reference_models.preset_of(entry)) if entry.is_detector else None
            model, variables = transfer.init_from_file(
                config.model, zoo_files.fetch(entry), key, config.init, reference=preset
            )
        elif config.init.startswith(hub.PREFIX) or release.is_release(config.init):
            published, variables = load_pretrained(config.init)
            model, variables = transfer.init_from_run(config.model, published.model, variables, key, config.init)
        elif (epath.Path(config.init) / CONFIG).is_file():
            run, variables = load_variables(config.init)
            averaged = ", the averaged weights (train.ema_decay)" if run.train.ema_decay else ""
            log.info("%s: initializing from the newest checkpoint%s", config.init, averaged)
            model, variables = transfer.init_from_run(config.model, run.model, variables, key, config.init)
        elif Path(config.init).is_file():
            model, variables = transfer.init_from_file(config.model, config.init, key)
        else:
            raise ConfigError(
                f"init: {config.init} is neither a weight file nor the work directory of a run; for published weights"
                f" give {ZOO_PREFIX}NAME or {hub.PREFIX}OWNER/NAME"
            )
    except WeightsError as error:
        raise ConfigError(f"init: {error}") from error
    return dataclasses.replace(config, model=model), variables
