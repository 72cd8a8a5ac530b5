"""Pretrained models by name: published ones, release folders, and release folders on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.weights import hub, reference_models, release, zoo, zoo_files


def load_pretrained(
    name: str | os.PathLike[str], recipe: Config | None = None, *, exact: bool = True, revision: str | None = None
) -> tuple[Config, Any]:
    """Return the configuration and the variables of a pretrained model; it is downloaded on first use.

    Args:
      name: a name of `zoo`, such as "maskrcnn_resnet50_fpn_v2" (`mrcnn weights list` shows all); the path of a folder
        that `mrcnn export` has written; or "hf://owner/name" for such a folder on the Hugging Face Hub, see `hub`.
      recipe: the configuration of everything but the model. Default: COCO 2017; that of the release folder.
      exact: whether to resize and pad each image as the reference implementation of the model does, if it has one;
        otherwise into the buckets.
      revision: branch, tag or commit on the Hub.

    Raises ConfigError for an unknown name and for weights without a detector, DownloadError if the weights cannot be
    downloaded, WeightsError if they cannot be used.
    """
    name = os.path.expanduser(name)
    if name.startswith(hub.PREFIX):
        return _of_release(hub.fetch(name, revision), recipe, exact)
    if revision is not None:
        raise ConfigError(f"revision={revision} needs a name that begins with {hub.PREFIX}, not {name}")
    if os.path.isdir(name):
        return _of_release(name, recipe, exact)
    try:
        entry = zoo.find(name)
    except ConfigError as error:
        raise ConfigError(f"{error} (there is no folder {name})") from error
    if not entry.is_detector:
        raise ConfigError(
            f"{entry.name} is a backbone without a detection head: train a model with --config.init=zoo:{entry.name}"
        )
    origin, model = reference_models.preset_of(entry)
    return reference_models.load(zoo_files.fetch(entry), origin, model, recipe, exact=exact)


def _of_release(folder: str | os.PathLike[str], recipe: Config | None, exact: bool) -> tuple[Config, Any]:
    config, variables = release.read(folder)
    resize = config.eval.resize if exact else "bucket"
    base = recipe or config
    settings = dataclasses.replace(base.eval, resize=resize)
    return dataclasses.replace(base, name=config.name, model=config.model, eval=settings), variables
