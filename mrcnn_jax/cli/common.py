"""What the commands share: arguments, models, exit statuses, and errors printed in one line."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mrcnn_jax.config import Config, from_json, to_json
from mrcnn_jax.distributed import cluster, failure
from mrcnn_jax.errors import DISK_FULL
from mrcnn_jax.weights import reference_models


def make_parser(command: str, description: str | None, *, overrides: bool = False) -> argparse.ArgumentParser:
    """A parser of the arguments of `mrcnn COMMAND`; with `overrides` they include `--config.NAME=VALUE`."""
    epilog = (
        "Any field of the configuration: --config.NAME=VALUE, such as --config.data.root=DIR." if overrides else None
    )
    return argparse.ArgumentParser(
        prog=f"mrcnn {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The parsed arguments, and the overrides: `--config.a.b=value` as `a.b=value`, if the parser accepts them."""
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if parser.epilog is None:
            parser.error(f"unknown argument {argument}")
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(f"unknown argument {argument}; fields of the configuration are set by --config.name=value")
    return options, [argument.removeprefix("--config.") for argument in rest]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model, for `model_source`."""
    parser.add_argument(
        "--model",
        type=os.path.expanduser,
        metavar="NAME_OR_RUN",
        help="directory of a run; or, with --weights, the name of a model of torchvision (maskrcnn_resnet50_fpn, ...)"
        " or Detectron2 (mask_rcnn_R_50_FPN, ...)",
    )
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="latest", help="of the run: latest (default), best, or a step"
    )
    parser.add_argument(
        "--weights",
        type=os.path.expanduser,
        metavar="FILE",
        help="weights of the named model: .pth, .pkl, .npz or .safetensors",
    )
    parser.add_argument("--workdir", type=os.path.expanduser, help="directory of a run; the same as --model=RUN")


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add `--profile`, see `runtime.profiling`."""
    parser.add_argument(
        "--profile", action="store_true", help="also record where the time of a few steps goes, for TensorBoard"
    )


class ModelSource(NamedTuple):
    """Where a command gets its model from."""

    run: str | None  # directory of a run; None for a reference model
    load: Callable[[], tuple[Config, Any]]  # its configuration and variables


def model_source(
    parser: argparse.ArgumentParser, options: argparse.Namespace, recipe: Config | None = None
) -> ModelSource:
    """The model that `options` name; wrong options end the command at once.

    A reference model is loaded in exact mode; `recipe` says where it finds its data.
    """
    weights, model, workdir = options.weights, options.model, options.workdir
    if weights is not None:
        if model is None:
            parser.error("--model missing: --weights=FILE needs --model=NAME")
        origin = reference_models.origin_of(model)
        return ModelSource(None, lambda: reference_models.load(weights, origin, model, recipe))
    if model is not None and reference_models.is_name(model) and not os.path.isdir(model):
        parser.error(f"--weights missing: {model} is a reference model, which needs --weights=FILE")
    run = model or workdir
    if run is None:
        parser.error("which model? Give --model=RUN, or --model=NAME --weights=FILE")

    def load() -> tuple[Config, Any]:
        from mrcnn_jax.checkpoints.manager import load_variables  # here: it needs jax

        return load_variables(run, options.checkpoint)

    return ModelSource(run, load)


def load_on_main(load: Callable[[], tuple[Config, Any]]) -> tuple[Config, Any]:
    """What `load` returns in the main process, which alone has to see the files, in every process."""
    if not failure.is_distributed():
        return load()
    import jax
    import numpy as np

    from mrcnn_jax.distributed import collectives
    from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes

    variables: Any = None

    def read() -> bytes:
        nonlocal variables
        config, variables = load()
        return to_json(config).encode()

    config = from_json(collectives.on_main(read).decode())
    if variables is None:
        shapes = variable_shapes(build_model(config.model))
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return config, collectives.broadcast(variables)


def join(arguments: argparse.Namespace) -> bool:
    """Meet the other processes that flags (`cluster.add_flags`) or environment speak of; False if there are none.

    To be called before JAX looks for its devices. Raises ConfigError.
    """
    from mrcnn_jax.distributed import collectives  # here: it needs jax

    found = cluster.detect(arguments, os.environ, collectives.tpu_hosts)
    collectives.join(found, peer_timeout=arguments.peer_timeout, start_timeout=arguments.start_timeout)
    return found is not None


def run(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; errors that the user can fix are printed in one line.

    One of several processes does not end alone: see `distributed.failure`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # of stderr it is the default; names of files need not be Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # Orbax raises the first of what it logs, with tracebacks, as an error
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = functools.partial(_tell_unraisable, sys.unraisablehook)
    try:
        status = main() or 0
        failure.exit_barrier()
    except (Exception, KeyboardInterrupt) as error:
        status = _fail(error)
    return status


def _fail(error: BaseException) -> int:
    """Say what happened, in all processes where they are several; the exit status."""
    status, text = classify_error(error)
    if status == failure.LOST:
        failure.raise_if_process_failed()  # who ends breaks the connections, but leaves word before
    if text is None:
        if not failure.is_distributed():
            raise error
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    elif failure.is_main() or not getattr(error, "everywhere", False):
        _tell(failure.prefix_rank(text if isinstance(error, KeyboardInterrupt) else f"error: {text}"))
    if getattr(error, "everywhere", False):
        failure.exit_barrier()
    else:
        failure.end(status, text)
    return status


def _tell(text: str) -> None:
    """Say it on the terminal; where a full disk lets nothing through, the exit status has to do."""
    try:
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
    except OSError:  # what is still buffered would change the status as the interpreter ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())


def _tell_unraisable(tell: Callable[[Any], Any], what: Any) -> None:
    """As `tell` does it, without what threads of a checkpoint's writer tell an event loop that has failed already."""
    if str(what.exc_value) != "Event loop is closed":
        tell(what)


def classify_error(error: BaseException) -> tuple[int, str | None]:
    """Exit status and message of an error; the message is None for unexpected errors."""
    if isinstance(getattr(error, "exit_status", None), int):
        return error.exit_status, str(error)  # type: ignore[attr-defined]
    if isinstance(error, FileNotFoundError):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return 74, f"{error}; make room, then the same command continues"
    if failure.is_distributed() and failure.is_lost(error):
        return failure.LOST, f"a collective operation failed, another process is gone: {error}. {failure.AGAIN}"
    if isinstance(error, KeyboardInterrupt):
        return 130, str(error) or "Ctrl-C: interrupted"
    return 1, None
