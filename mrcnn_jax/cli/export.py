"""Write a model for use elsewhere.

The ending of TARGET decides what is written:
  DIR, without an ending
          a folder to give away, for example on the Hugging Face Hub:
          config.json, model.safetensors and README.md, the draft of a model
          card. `mrcnn predict`, `mrcnn eval` and the field `init` of a recipe
          take it in place of a run. An earlier export in DIR is replaced.
  FILE.zip
          programs for CPUs, GPUs and TPUs, with weights: one for each bucket
          (data.buckets) and batch size. They need jax, but not this package.
  FILE.onnx
          an ONNX file for one bucket and batch size, written in the environment
          of benchmarks/onnx_env.sh.

The averaged weights are written if the run has them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mrcnn_jax.cli import common
from mrcnn_jax.cli import config as summaries
from mrcnn_jax.config import Config, apply_overrides
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.runtime.files import check_output, is_remote
from mrcnn_jax.tools.export.card import model_card
from mrcnn_jax.training.logs.json_lines import EVALUATIONS, read_rows
from mrcnn_jax.weights import release, zoo


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("export", __doc__, overrides=True)
    common.add(parser, "model", "NAME_OR_RUN", common.MODEL_HELP, os.path.expanduser)
    common.add(parser, "target", "TARGET", "folder or file to write")
    common.add_checkpoint(parser)
    group = parser.add_argument_group("programs")
    batch_size = "images of a batch; FILE.zip has programs for single images, too (default: 1)"
    common.add(group, "--batch-size", "N", batch_size, int)
    masks = "masks within their boxes, in the whole padded image, or that with 8 pixels in a byte (default: boxes)"
    group.add_argument("--masks", choices=("boxes", "frames", "bits"), help=masks)
    parser.set_defaults(weights=None, workdir=None)
    options, overrides = common.parse(parser, arguments)
    write = {"": _write_folder, ".zip": _write_programs, ".onnx": _write_onnx}.get(options.target.suffix)
    if write is None:
        parser.error(f"TARGET={options.target}: give FILE.zip, FILE.onnx, or DIR without an ending")
    if write == _write_folder and options.batch_size is not None:
        parser.error(f"--batch-size is for FILE.zip and FILE.onnx, not for {options.target}")
    if write != _write_programs and options.masks:
        parser.error(f"--masks is for FILE.zip, not for {options.target}")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size={options.batch_size} must be at least 1")
    write(options, overrides, common.model_source(parser, options))


def _write_folder(options: argparse.Namespace, overrides: Sequence[str], source: common.ModelSource) -> None:
    from mrcnn_jax.checkpoints import manager, workdir  # import jax

    release.check_target(options.target)
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
    config = apply_overrides(config, overrides)
    network, training = summaries.network(config.model), summaries.training(config)
    card = model_card(config, network=network, training=training, **facts)
    release.write(options.target, config, variables, card)
    print(f"{options.target}: {network}, {config.model.num_classes} classes; fill in {options.target / release.CARD}")


def _metrics(run: str, step: int) -> Mapping[str, float]:
    """Return the evaluation of these weights; evaluation/metrics.json may be of another checkpoint or dataset."""
    rows = read_rows(epath.Path(run) / EVALUATIONS)
    return next((row for row in rows if row["step"] == step), {})


def _write_programs(options: argparse.Namespace, overrides: Sequence[str], source: common.ModelSource) -> None:
    from mrcnn_jax.tools.export import archive  # imports jax

    config, variables = _load(options, overrides, source)
    archive.write(
        options.target,
        config,
        variables,
        batch_size=options.batch_size or 1,
        mask_format=options.masks or "boxes",
        license_name=_license(options.model, source),
    )
    _print_size(options.target)


def _write_onnx(options: argparse.Namespace, overrides: Sequence[str], source: common.ModelSource) -> None:
    from mrcnn_jax.tools.export import onnx_file  # imports jax

    config, variables = _load(options, overrides, source)
    if len(config.data.buckets) > 1:
        choice = f"--config.data.buckets='({config.data.buckets[0]},)'"
        raise ConfigError(f"an ONNX file is for one shape of images: choose one of data.buckets, such as {choice}")
    onnx_file.write_onnx(options.target, config.model, variables, config.data.buckets[0], options.batch_size or 1)
    _print_size(options.target)


def _load(
    options: argparse.Namespace, overrides: Sequence[str], source: common.ModelSource
) -> tuple[Config, Mapping[str, Any]]:
    """Return a model with fixed shapes of images."""
    from mrcnn_jax.inference import single_image

    check_output(options.target, "FILE")
    config, variables = source.load() if source.run is not None else source.load(exact=False)
    config = apply_overrides(config, overrides)
    single_image.check_fixed_shapes(config)
    return config, variables


def _print_size(target: Path) -> None:
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; docs/export.md says how to use it")


def _license(model: str, source: common.ModelSource) -> str:
    """Return the license of published weights; that of other weights is their author's choice."""
    published = source.run is None and not os.path.isdir(model) and not is_remote(model)
    return zoo.LICENSES[zoo.find(model).source] if published else "unknown"
