"""What the commands share: overrides of the configuration, and errors told in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from mrcnn_jax.config import ConfigError
from mrcnn_jax.data.annotations import DataError


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; arguments `--config.a.b=value` come back as overrides `a.b=value`."""
    arguments, rest = parser.parse_known_args()
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(f"unknown argument {argument}; fields of the configuration are set by --config.name=value")
    return arguments, [argument.removeprefix("--config.") for argument in rest]


def run(main: Callable[[], int | None]) -> None:
    """Run a command; what the user can mend is said without a traceback, with exit status 2."""
    try:
        status = main()
    except (ConfigError, DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
