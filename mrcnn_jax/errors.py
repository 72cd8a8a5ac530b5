"""The errors that a user can meet, each with the exit status of the command that it ends, and how messages show values.

Exit statuses: 0 done; 1 a guard stopped the training, or the program is wrong: the same command fails again; 2 the user
can fix what the message names; 74 something could not be written; 75 another process was lost; 128 plus its number: a
signal. `everywhere` says that all processes of a run raise the error at the same place.
"""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Sequence
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of the system that free space fixes
_NAMED = 20  # items that a message lists one by one; the rest are counted
_LONGEST = 80  # characters of a value that a message shows


class UserError(ValueError):
    """Input that cannot be used; the message names it and says what to do."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration or command line that cannot be used; the message names the field."""


class DataError(UserError):
    """A dataset that cannot be used; the message names the file and the id."""


class UnreadableRecordError(DataError):
    """A damaged record of a prepared dataset whose other records can be read."""


class PixelRangeError(UserError):
    """Pixels that cannot be converted to 8 bits without `data.value_range`."""


class ImageError(UserError):
    """An image that cannot be used; the message names it."""


class WeightsError(UserError):
    """A file, or the tensors in it, that cannot be used as weights; the message names the file."""


class DamagedCheckpointError(ConfigError):
    """A checkpoint whose content differs from what was written."""


class FailureFileError(UserError):
    """A file that does not contain a training step for `mrcnn replay`."""


class CheckpointError(OSError):
    """A checkpoint that could not be written. `last` is the step of the last complete one, or None."""

    exit_status = 74  # EX_IOERR of sysexits.h

    def __init__(self, step: int, last: int | None, folder: Any, reason: str):
        self.step, self.last = step, last
        found = "There is no complete one yet" if last is None else f"The last complete one is of step {last}"
        super().__init__(
            f"checkpoint {step} could not be written to {folder}: {reason}. {found}. Make room, or mend what is said"
            " here; then the same command continues"
        )


class NonFiniteLossError(RuntimeError):
    """A training step whose loss or gradient is not finite; `saved` is the file that contains it, or empty."""

    exit_status, everywhere = 1, True

    def __init__(self, message: str, *, step: int, image_ids: list[Any], saved: str):
        self.step, self.image_ids, self.saved = step, image_ids, saved
        super().__init__(message)


class RecompilationError(RuntimeError):
    """A second compilation of the train step for a shape of batches: a fault of the program."""

    exit_status = 1


class Interrupted(KeyboardInterrupt):
    """A signal ended the command."""

    everywhere = False

    def __init__(self, number: int, outcome: str):
        self.exit_status = 128 + number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: {outcome}")


# What `distributed.collectives.on_main` raises in all processes when the main one does.
USER_ERRORS = (ConfigError, DataError, WeightsError, FileNotFoundError)


def refuse(what: str, culprits: Sequence[Any], advice: str) -> None:
    """Raise DataError: `what`, the culprits by name and what to do."""
    raise DataError(f"{what} ({len(culprits)}): {listing(culprits)}; {advice}")


def listing(culprits: Sequence[Any], most: int | None = _NAMED) -> str:
    """The first `most` by name, then how many more; all of them for None."""
    named = [str(culprit) for culprit in culprits[:most]]
    if len(culprits) > len(named):
        named.append(f"and {len(culprits) - len(named)} more")
    return ", ".join(named)


def described(error: BaseException) -> str:
    """An exception on one line: its type and its message."""
    return ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))


def shown(value: object) -> str:
    """A value out of somebody's file as a message can show it: short, printable, on one line; lists by their type."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
