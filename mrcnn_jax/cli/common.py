"""Functions that all commands share: argument parsing, model loading, error messages and exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mrcnn_jax.config import Config
from mrcnn_jax.distributed import cluster, failure
from mrcnn_jax.errors import DISK_FULL, ProcessLostError
from mrcnn_jax.runtime.files import is_remote, user_path
from mrcnn_jax.weights import hub, pretrained, reference_models, release

_OVERRIDES = """\
configuration overrides:
  --config.NAME=VALUE   set a field of the configuration, for example
                        --config.data.root=DIR (fields: docs/configuration.md)
"""

MODEL_HELP = (
    "work directory of a run; the name of a published model (`mrcnn weights list`), such as maskrcnn_resnet50_fpn_v2; a"
    " folder of `mrcnn export`, or hf://OWNER/NAME with one"
)


def make_parser(command: str, description: str | None, *, overrides: bool = False) -> argparse.ArgumentParser:
    """Return the argument parser of `mrcnn COMMAND`. With `overrides`, `parse` accepts `--config.NAME=VALUE`."""
    return argparse.ArgumentParser(
        prog=f"mrcnn {command}",
        description=description,
        epilog=_OVERRIDES if overrides else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed arguments and the configuration overrides: `--config.a.b=value` as `a.b=value`."""
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if parser.epilog is None:
            parser.error(f"unknown argument {argument}")
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(f"unknown argument {argument}; set configuration fields with --config.NAME=VALUE")
    return options, [argument.removeprefix("--config.") for argument in rest]


def add(
    parser: argparse._ActionsContainer, name: str, metavar: str, text: str, type: Any = None, **options: Any
) -> None:
    """Add an argument with a value and its help text; by default the value is a path."""
    parser.add_argument(name, type=type or user_path, metavar=metavar, help=text, **options)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `model_source`."""
    group = parser.add_argument_group("model", "Give --model=RUN, --model=NAME, or --model=NAME and --weights=FILE.")
    expand = os.path.expanduser  # in text, because a run may be in a remote store
    add(group, "--model", "NAME_OR_RUN", MODEL_HELP, expand)
    add_checkpoint(group)
    weights = ".pth, .pkl, .npz or .safetensors file; default: the published ones, which are downloaded on first use"
    add(group, "--weights", "FILE", f"weights of the torchvision or Detectron2 model NAME: a {weights}", expand)
    add(group, "--workdir", "DIR", "work directory of a run; without --model, its model is used", expand)


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """Add the argument that selects a checkpoint of a run."""
    which = "checkpoint of the run: latest, best or a step (default: %(default)s)"
    add(parser, "--checkpoint", "WHICH", which, str, default="latest")


def add_profile_and_processes(parser: argparse.ArgumentParser) -> None:
    """Add `--profile`, see `runtime.profiling`, and the arguments of `initialize_distributed`."""
    parser.add_argument("--profile", action="store_true", help="record a few steps for TensorBoard's profiler")
    cluster.add_flags(parser)


class ModelSource(NamedTuple):
    """A model that the arguments name."""

    run: str | None  # work directory of the run; None for a reference model
    load: Callable[..., tuple[Config, Any]]  # returns its configuration and variables


def model_source(parser: argparse.ArgumentParser, options: argparse.Namespace) -> ModelSource:
    """Return the model that `options` name; exit with a usage message if they are inconsistent.

    `load` of a reference model takes a recipe with the dataset settings, or None; it sets exact mode.
    """
    weights, model, workdir = options.weights, options.model, options.workdir
    if weights is not None:
        if model is None:
            parser.error("--model missing: --weights=FILE needs --model=NAME")
        origin = reference_models.origin_of(model)
        return ModelSource(None, functools.partial(reference_models.load, weights, origin, model))
    if model is not None and not _is_run(model):
        return ModelSource(None, functools.partial(pretrained.load_pretrained, model))
    run = model or workdir
    if run is None:
        parser.error("no model: give --model=RUN or --model=NAME")

    def load() -> tuple[Config, Any]:
        from mrcnn_jax.checkpoints.manager import load_variables  # imports jax

        return load_variables(run, options.checkpoint)

    return ModelSource(run, load)


def _is_run(model: str) -> bool:
    """Whether `model` can only be the work directory of a run."""
    if is_remote(model):
        return not model.startswith(hub.PREFIX)
    return os.path.isdir(model) and not release.is_release(model)


def load_on_main(load: Callable[[], tuple[Config, Any]]) -> tuple[Config, Any]:
    """Call `load` on process 0 and return its result on every process; only process 0 needs access to the files."""
    if not failure.is_distributed():
        return load()
    import jax
    import numpy as np

    from mrcnn_jax.distributed import collectives
    from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes

    variables: Any = None

    def read() -> Config:
        nonlocal variables
        config, variables = load()
        return config

    config = collectives.run_on_main(read)
    if variables is None:
        shapes = variable_shapes(build_model(config.model))
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return config, collectives.broadcast(variables)


def initialize_distributed(arguments: argparse.Namespace) -> bool:
    """Connect to the other processes given by the flags (`cluster.add_flags`) or the environment.

    Returns False if this process runs alone. Call before JAX initializes its devices. Raises ConfigError.
    """
    from mrcnn_jax.distributed import startup  # imports jax

    processes = cluster.detect(arguments, os.environ, has_tpu=startup.has_tpu())
    startup.initialize(processes, peer_timeout=arguments.peer_timeout, start_timeout=arguments.start_timeout)
    return processes is not None


def run(main: Callable[[], int | None]) -> int:
    """Run a command and return its exit status. Errors that the user can fix are printed in one line.

    With several processes an error ends all of them: see `distributed.failure`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be valid Unicode; stderr escapes by default
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # Orbax logs errors with tracebacks that it also raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = functools.partial(_skip_closed_event_loop, sys.unraisablehook)
    try:
        status = main() or 0
        failure.exit_barrier()
    except (Exception, KeyboardInterrupt) as error:
        status = _handle_error(error)
    return status


def _handle_error(error: BaseException) -> int:
    """Print an error, end the other processes, and return the exit status."""
    status, text = classify_error(error)
    on_all_processes = getattr(error, "on_all_processes", False)
    if status == failure.EXIT_PROCESS_LOST:
        failure.exit_if_process_failed()  # that failure is the cause of this error
    if text is None:
        if not failure.is_distributed():
            raise error
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    elif not on_all_processes or _is_main():
        _print_error(failure.prefix_rank(text if isinstance(error, KeyboardInterrupt) else f"error: {text}"))
    if on_all_processes:
        with contextlib.suppress(ProcessLostError):  # must not hide the error
            failure.exit_barrier()
    else:
        failure.exit_all_processes(status, text)
    return status


def _is_main() -> bool:
    from mrcnn_jax.distributed import collectives  # imports jax

    return collectives.is_main()


def _print_error(text: str) -> None:
    """Print to stderr. If the disk is full, discard the output, so that the exit status does not change."""
    try:
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
    except OSError:  # the interpreter fails at exit if it cannot flush
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.dup2(null, sys.stderr.fileno())


def _skip_closed_event_loop(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """`sys.unraisablehook` without the errors that checkpoint threads raise after a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def classify_error(error: BaseException) -> tuple[int, str | None]:
    """Exit status and message of an error; the message is None for unexpected errors."""
    if isinstance(getattr(error, "exit_status", None), int):
        return error.exit_status, str(error)  # type: ignore[attr-defined]
    if isinstance(error, FileNotFoundError):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return 74, f"{error}; free disk space, then run the same command to continue"
    if failure.is_distributed() and failure.is_collective_failure(error):
        reason = f"a collective operation failed because another process has exited: {error}"
        return failure.EXIT_PROCESS_LOST, f"{reason}. {failure.RESUME_HINT}"
    if isinstance(error, KeyboardInterrupt):
        return 130, str(error) or "Ctrl-C: interrupted"
    return 1, None
