"""Pretrained models by name."""

from __future__ import annotations

from typing import Any

from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.weights import reference_models, zoo, zoo_files


def load_pretrained(name: str, recipe: Config | None = None, *, exact: bool = True) -> tuple[Config, Any]:
    """Return the configuration and the variables of a published model; the weights are downloaded on first use.

    Args:
      name: a name of `zoo`, such as "maskrcnn_resnet50_fpn_v2"; `mrcnn weights list` shows all.
      recipe, exact: as for `reference_models.load`.

    Raises ConfigError for an unknown name and for weights without a detector, DownloadError if the weights cannot be
    downloaded, WeightsError if they cannot be used.
    """
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
