"""Write a model for use elsewhere.

Formats:
  folder  config.json, model.safetensors and README.md, to give away, for
          example on the Hugging Face Hub. `mrcnn predict`, `mrcnn eval` and the
          field `init` of a recipe take DIR in place of a run.

The averaged weights are written if the run has them. README.md is a draft of a
model card: fill in what it asks for. An earlier export in DIR is replaced,
README.md included.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mrcnn_jax.cli import common
from mrcnn_jax.cli import config as summaries
from mrcnn_jax.tools.export.card import model_card
from mrcnn_jax.training.logs.json_lines import EVALUATIONS, read_rows
from mrcnn_jax.weights import release


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("export", __doc__)
    common.add(parser, "model", "NAME_OR_RUN", common.MODEL_HELP, os.path.expanduser)
    common.add(parser, "folder", "DIR", "folder to write")
    parser.add_argument("--format", choices=("folder",), required=True, help="what to write")
    common.add_checkpoint(parser)
    parser.set_defaults(weights=None, workdir=None)
    options, _ = common.parse(parser, arguments)
    source = common.model_source(parser, options)
    from mrcnn_jax.checkpoints import manager, workdir  # import jax

    release.check_target(options.folder)
    facts: dict[str, Any] = {}
    if source.run is None:
        config, variables = source.load()
    else:
        step, config, variables = manager.load_step(source.run, options.checkpoint)
        facts = {
            "step": step,
            "data": workdir.read_fingerprint(source.run),
            "metrics": _metrics(source.run, step),
        }
    network, training = summaries.network(config.model), summaries.training(config)
    card = model_card(config, network=network, training=training, **facts)
    release.write(options.folder, config, variables, card)
    print(f"{options.folder}: {network}, {config.model.num_classes} classes; fill in {options.folder / release.CARD}")


def _metrics(run: str, step: int) -> Mapping[str, float]:
    """Return the evaluation of these weights; evaluation/metrics.json may be of another checkpoint or dataset."""
    rows = read_rows(epath.Path(run) / EVALUATIONS)
    return next((row for row in rows if row["step"] == step), {})
