"""Errors with an exit status and a message for the user, and functions that format values in messages.

Exit statuses:

- 0: success
- 1: a check stopped training, or the program has a bug; the same command fails again
- 2: the user can fix what the message names
- 74: something could not be written
- 75: another process was lost
- 128 + n: signal n

An error whose `on_all_processes` is true is raised by all processes of a run at the same place.
"""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errno values that free disk space fixes
_MAX_LISTED = 20  # items that a message lists; it counts the rest
_MAX_LENGTH = 80  # characters of a value in a message


class UserError(ValueError):
    """Unusable input; the message names it and says what to do."""

    exit_status = 2


class ConfigError(UserError):
    """Unusable configuration or command line; the message names the field."""


class DataError(UserError):
    """Unusable dataset; the message names the file and the id."""


class UnreadableRecordError(DataError):
    """A damaged record in a prepared dataset whose other records are readable."""


class PixelRangeError(UserError):
    """Pixels that cannot be converted to 8 bits without `data.value_range`."""


class ImageError(UserError):
    """Unusable image; the message names it."""


class WeightsError(UserError):
    """Unusable weights file, or unusable tensors in it; the message names the file."""


class DownloadError(UserError):
    """A file that could not be downloaded; the message has the address and says where to put the file."""


class DamagedCheckpointError(ConfigError):
    """A checkpoint whose content differs from what was written."""


class FailureFileError(UserError):
    """A file that does not contain a training step for `mrcnn replay`."""


class CheckpointError(OSError):
    """A checkpoint that could not be written. `last` is the step of the last complete one, or None."""

    exit_status = 74  # EX_IOERR of sysexits.h

    def __init__(self, step: int, last: int | None, folder: Any, reason: str):
        self.step, self.last = step, last
        complete = "There is no complete one yet" if last is None else f"The last complete one is of step {last}"
        super().__init__(
            f"checkpoint {step} could not be written to {folder}: {reason}. {complete}. Free disk space or fix the"
            " cause, then run the same command to continue"
        )


class NonFiniteLossError(RuntimeError):
    """A training step whose loss or gradient is not finite; `saved` is the file that contains it, or empty."""

    exit_status, on_all_processes = 1, True

    def __init__(self, message: str, *, step: int, image_ids: list[Any], saved: str):
        self.step, self.image_ids, self.saved = step, image_ids, saved
        super().__init__(message)


class ProcessLostError(RuntimeError):
    """Process 0 of several processes has ended, or cannot be reached."""


class RecompilationError(RuntimeError):
    """A second compilation of the training step for one batch shape, which is a bug."""

    exit_status = 1


class Interrupted(KeyboardInterrupt):
    """A signal ended the command."""

    on_all_processes = False

    def __init__(self, number: int, outcome: str):
        self.exit_status = 128 + number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: {outcome}")


# Errors of process 0 that `distributed.collectives.run_on_main` raises on all processes.
USER_ERRORS = (ConfigError, DataError, DownloadError, WeightsError, FileNotFoundError)


def raise_data_error(problem: str, items: Sequence[Any], advice: str) -> None:
    """Raise DataError with the problem, the items that have it, and what to do."""
    raise DataError(f"{problem} ({len(items)}): {format_list(items)}; {advice}")


def format_list(items: Sequence[Any], max_count: int | None = _MAX_LISTED) -> str:
    """Join the first `max_count` items with commas, and count the rest; None joins all of them."""
    parts = [str(item) for item in items[:max_count]]
    if len(items) > len(parts):
        parts.append(f"and {len(items) - len(parts)} more")
    return ", ".join(parts)


def format_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], describe: Callable[[Any], str] = str
) -> list[str]:
    """Return "name was X, is Y" for each value that differs. `describe` formats a value, or None if there is none."""
    return [
        f"{name} was {describe(before.get(name))}, is {describe(after.get(name))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def format_error(error: BaseException) -> str:
    """Format an exception in one line: its type and its message."""
    return ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))


def format_value(value: object) -> str:
    """Format a JSON value for a message: printable, in one line, at most 80 characters; lists and dicts by type."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."
