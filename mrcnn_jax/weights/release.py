"""Release folders, the format to give a trained model away: configuration, weights, and a description for people.

    config.json          the configuration, without paths of the machine that wrote it
    model.safetensors    all variables in float32, under the names of `naming.FLAX`
    README.md            the model card

`mrcnn export` writes them, from a run or from published weights.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from mrcnn_jax.config import Config, SplitConfig, from_json, to_json
from mrcnn_jax.errors import ConfigError, WeightsError, format_list
from mrcnn_jax.runtime import files
from mrcnn_jax.weights.io import weight_files

if TYPE_CHECKING:
    from mrcnn_jax.models.mask_rcnn import Variables

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def is_release(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a release folder, which may lack its weights; the work directory of a run has folders too."""
    folder = Path(path)
    if (folder / WEIGHTS).is_file():
        return True
    return (folder / CONFIG).is_file() and not any(entry.is_dir() for entry in folder.iterdir())


def read(folder: str | os.PathLike[str]) -> tuple[Config, Variables]:
    """Read the configuration and the variables (NumPy arrays, float32) of a release folder.

    Raises WeightsError, with the name of the file, if a file is missing, damaged or written by another version, or if
    the weights do not fit the configuration or are not finite.
    """
    from mrcnn_jax.models.mask_rcnn import build_model  # imports jax
    from mrcnn_jax.weights import naming

    folder = Path(folder)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise WeightsError(
            f"{folder} has no {' and no '.join(missing)}: it is not a complete folder of `mrcnn export`; get it"
            " again (a run is loaded with Predictor.from_checkpoint)"
        )
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    state = weight_files.read(path)
    if not (isinstance(state, dict) and all(isinstance(value, np.ndarray) for value in state.values())):
        raise WeightsError(f"{path} is not a safetensors file: get it again")
    return config, naming.import_state(naming.FLAX, build_model(config.model), state, source=str(path))


def _read_config(path: Path) -> Config:
    try:
        config = from_json(path.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}. Another version of mrcnn_jax, or another program, wrote it") from None
    except ValueError as error:
        raise WeightsError(f"{path} is damaged ({error}): get it again") from None
    if not config.model.num_classes:
        raise WeightsError(f"{path}: model.num_classes is not set, so the model has no classes: get it again")
    return config


def write(folder: str | os.PathLike[str], config: Config, variables: Variables, card: str) -> None:
    """Write a release folder; it appears under its name when it is complete. An earlier one is replaced.

    Args:
      variables: of the model `config.model`, as from `mask_rcnn.init_variables`.
      card: text of README.md.

    Raises ConfigError if `folder` has other content, WeightsError if the variables do not fit the model or are not
    finite.
    """
    from mrcnn_jax.models.mask_rcnn import build_model  # imports jax
    from mrcnn_jax.weights import naming

    check_target(folder)
    state = naming.export_state(naming.FLAX, variables)
    naming.import_state(naming.FLAX, build_model(config.model), state, source="the model to export")
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-new-", dir=target.parent))
    try:
        weight_files.write(unfinished / WEIGHTS, state)
        files.write_text(unfinished / CONFIG, to_json(without_local_paths(config)))
        files.write_text(unfinished / CARD, card)
        files.replace_folder(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_target(folder: str | os.PathLike[str]) -> None:
    """Raise ConfigError unless `write` can write to `folder`: a new one, an empty one, or an earlier release."""
    files.check_output(folder, "DIR", folder=True)
    names = {entry.name for entry in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    if others := sorted(names - {CONFIG, WEIGHTS, CARD}):
        raise ConfigError(f"DIR={folder} contains other files ({format_list(others, 3)}): give a new folder")
    if names and WEIGHTS not in names:
        raise ConfigError(f"DIR={folder} is not an earlier export (it has no {WEIGHTS}): give a new folder")


def without_local_paths(config: Config) -> Config:
    """Return `config` without paths that only exist on the machine of its author.

    The folders of data and caches and the initial weights are empty. Paths of the splits, which are relative to
    `data.root`, are reduced to the last part if they lead out of it.
    """
    data = config.data
    data = dataclasses.replace(
        data, root="", cache_dir="", train=_inside_root(data.train), eval=_inside_root(data.eval)
    )
    return dataclasses.replace(config, init="", data=data)


def _inside_root(split: SplitConfig) -> SplitConfig:
    def shorten(path: str) -> str:
        leads_out = PurePath(path).is_absolute() or ".." in PurePath(path).parts or files.is_remote(path)
        return PurePath(path).name if leads_out else path

    return dataclasses.replace(split, annotations=shorten(split.annotations), images=shorten(split.images))
