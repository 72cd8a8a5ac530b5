"""Serve a model over HTTP.

POST an image to /predict, or open / in a browser; see docs/serving.md. /ready answers
503 while the model is compiled. SIGTERM and Ctrl-C stop the service as soon as it has
answered what it accepted. --model also takes a FILE.zip of `mrcnn export`.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from mrcnn_jax.cli import common
from mrcnn_jax.config import apply_overrides
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.runtime import compilation_cache

if TYPE_CHECKING:
    from mrcnn_jax.inference.predictor import Predictor

Number = TypeVar("Number", int, float)
_PACKAGES = ("prometheus_client", "python_multipart", "starlette", "uvicorn")  # of the extra `serve`


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("serve", __doc__, overrides=True)
    common.add_model(parser)
    default = "(default: %(default)s)"
    common.add(parser, "--host", "ADDRESS", f"0.0.0.0 for all networks {default}", str, default="127.0.0.1")
    common.add(parser, "--port", "N", f"0 for any free one {default}", int, default=8000)
    common.add(parser, "--batch-size", "N", "images of a batch (default: eval.batch_size)", _positive(int))
    wait = f"time that an image waits for others in its batch {default}"
    common.add(parser, "--max-wait", "MS", wait, _positive(float), default=5.0)
    queue = f"number of predictions in progress at which others are refused {default}"
    common.add(parser, "--queue", "N", queue, _positive(int), default=64)
    common.add(parser, "--max-bytes", "N", f"limit of a request {default}", _positive(int), default=20_000_000)
    common.add(parser, "--max-pixels", "N", f"limit of an image {default}", _positive(int), default=50_000_000)
    timeout = f"limit of an upload and its prediction together {default}"
    common.add(parser, "--timeout", "SECONDS", timeout, _positive(float), default=60.0)
    options, overrides = common.parse(parser, arguments)
    if options.workdir and (options.model or options.weights):
        parser.error("--workdir names a second model: give --model=RUN or --model=NAME")
    is_export = str(options.model).endswith(".zip")
    model = None if is_export else common.model_source(parser, options)
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"mrcnn serve needs {', '.join(missing)}: pip install 'mrcnn-jax[serve]'")
    compilation_cache.enable()
    from mrcnn_jax.tools.serve.run import listen, serve
    from mrcnn_jax.tools.serve.service import Settings

    with listen(options.host, options.port) as listener:
        predict = _load(model, overrides) if model else _load_export(options, overrides)
        batch_size = options.batch_size or predict.config.eval.batch_size
        limits = {name: getattr(options, name) for name in Settings._fields if name != "batch_size"}
        serve(predict, listener, Settings(batch_size, **limits))


def _load(model: common.ModelSource, overrides: Sequence[str]) -> Predictor:
    """Return the model, which pads images to buckets. Raises ConfigError for other settings."""
    from mrcnn_jax.inference import single_image
    from mrcnn_jax.inference.predictor import Predictor

    config, variables = model.load() if model.run is not None else model.load(exact=False)
    config = apply_overrides(config, overrides)
    single_image.check_fixed_shapes(config)
    return Predictor(config, variables)


def _load_export(options: argparse.Namespace, overrides: Sequence[str]) -> Predictor:
    """Return the model of a file of `mrcnn export`. Raises ConfigError for settings that its programs do not have."""
    from mrcnn_jax.inference.predictor import Predictor

    predict = Predictor.from_export(options.model)
    batch_size = predict.config.eval.batch_size
    if overrides or options.batch_size not in (None, 1, batch_size):
        raise ConfigError(
            f"--model={options.model} has programs for batches of 1 and {batch_size}, which cannot be changed: remove"
            " --config and --batch-size, or export the model again"
        )
    return predict


def _positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Return a parser of positive numbers."""

    def number(text: str) -> Number:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    return number
