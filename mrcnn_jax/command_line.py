"""What the commands share: overrides of the configuration, where a model comes from, errors told in one line.

Exit statuses: 0 done; 1 a guard stopped the training, or the program is wrong: starting again does not help; 2 the user
can mend configuration or data; 74 something could not be written; 75 another process was lost; 130, 143 a signal ended
the command. An error says its own as `exit_status`. With several processes all end with the status of the first that
ends; `everywhere=True` says that the error comes up in all of them, in the same place.
"""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from mrcnn_jax import cluster, paths, peer_models, peers
from mrcnn_jax.config import Config, ConfigError, from_json, to_json
from mrcnn_jax.data.errors import DataError
from mrcnn_jax.weights.errors import WeightsError


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; arguments `--config.a.b=value` come back as overrides `a.b=value`."""
    arguments, rest = parser.parse_known_args()
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(f"unknown argument {argument}; fields of the configuration are set by --config.name=value")
    return arguments, [argument.removeprefix("--config.") for argument in rest]


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model a command uses, for `load_model`."""
    parser.add_argument("--workdir", type=os.path.expanduser, help="folder that train.py wrote")
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="latest", help="of the run: latest (default), best, or a step"
    )
    parser.add_argument(
        "--weights",
        type=os.path.expanduser,
        metavar="FILE",
        help="or weights of a peer: .pth, .pkl, .npz or .safetensors",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="their model: maskrcnn_resnet50_fpn, ... of torchvision, mask_rcnn_R_50_FPN, ... of Detectron2",
    )


def add_profile(parser: argparse.ArgumentParser) -> None:
    """The argument that asks for a recording, see `profiling`."""
    parser.add_argument(
        "--profile", action="store_true", help="also record where the time of a few steps goes, for TensorBoard"
    )


def load_model(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, recipe: Config | None = None
) -> tuple[Config, Any]:
    """Configuration and variables of the run, or of the peer's model, which is used in exact mode.

    `recipe` says where the peer's model finds its data. Ends the command when the arguments do not say one model.
    """
    return model_source(parser, arguments, recipe)()


def model_source(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, recipe: Config | None = None
) -> Callable[[], tuple[Config, Any]]:
    """`load_model` as a function to be called when all processes are there; wrong arguments end the command at once."""
    weights, model = arguments.weights, arguments.model
    if weights is not None and model is not None:
        return lambda: peer_models.load(weights, peer_models.peer_of(model), model, recipe)
    if weights is not None or model is not None:
        missing = "--weights" if weights is None else "--model"
        parser.error(f"{missing} missing: a peer's model needs --weights and --model")
    if arguments.workdir is None:
        parser.error("which model? Give --workdir=RUN, or --weights=FILE --model=NAME")

    def load() -> tuple[Config, Any]:
        from mrcnn_jax.training.checkpoint import load_variables  # here: it needs jax

        return load_variables(arguments.workdir, arguments.checkpoint)

    return load


def load_on_main(load: Callable[[], tuple[Config, Any]]) -> tuple[Config, Any]:
    """What `load` returns in the main process, which alone has to see the files, in every process."""
    if not peers.joined():
        return load()
    import jax
    import numpy as np

    from mrcnn_jax import processes
    from mrcnn_jax.models.rcnn import build_model, variable_shapes

    variables: Any = None

    def read() -> bytes:
        nonlocal variables
        config, variables = load()
        return to_json(config).encode()

    config = from_json(processes.on_main(read).decode())
    if variables is None:
        shapes = variable_shapes(build_model(config.model))
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return config, processes.broadcast(variables)


def join(arguments: argparse.Namespace) -> bool:
    """Meet the other processes that flags (`cluster.add_flags`) or environment speak of; False if there are none.

    To be called before JAX looks for its devices. Raises ConfigError.
    """
    from mrcnn_jax import processes  # here: it needs jax

    found = cluster.detect(arguments, os.environ, processes.tpu_hosts)
    processes.join(found, peer_timeout=arguments.peer_timeout, start_timeout=arguments.start_timeout)
    return found is not None


def run(main: Callable[[], int | None]) -> None:
    """Run a command; what the user can mend is said without a traceback, with exit status 2.

    One of several processes does not end alone: see `peers`.
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
        peers.leave()
    except (Exception, KeyboardInterrupt) as error:
        status = _fail(error)
    sys.exit(status)


def _fail(error: BaseException) -> int:
    """Say what happened, in all processes where they are several; the exit status."""
    status, text = _judge(error)
    if status == peers.LOST:
        peers.heed()  # who ends breaks the connections, but leaves word before
    if text is None:
        if not peers.joined():
            raise error
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    elif peers.is_main() or not getattr(error, "everywhere", False):
        _tell(peers.signed(text if isinstance(error, KeyboardInterrupt) else f"error: {text}"))
    if getattr(error, "everywhere", False):
        peers.leave()
    else:
        peers.end(status, text)
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


def _judge(error: BaseException) -> tuple[int, str | None]:
    """Exit status and text of an error; no text for what nobody foresaw."""
    if isinstance(getattr(error, "exit_status", None), int):
        return error.exit_status, str(error)  # type: ignore[attr-defined]
    if isinstance(error, (ConfigError, DataError, WeightsError, FileNotFoundError)):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno in paths.FULL:
        return 74, f"{error}; make room, then the same command continues"
    if peers.joined() and peers.is_lost(error):
        return peers.LOST, f"a collective operation failed, another process is gone: {error}. {peers.AGAIN}"
    if isinstance(error, KeyboardInterrupt):
        return 130, str(error) or "Ctrl-C: interrupted"
    return 1, None
