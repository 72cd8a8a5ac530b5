"""Files of a run, which may lie in a remote store (gs://, s3://): whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mrcnn_jax.errors import ConfigError

_ROOM = 16  # bytes of a name that unfinished files add to it


def user_path(text: str) -> Path:
    """The path that a person wrote; "~" is the home directory, which shells leave alone in `--flag=~/folder`."""
    return Path(os.path.expanduser(text))


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in a remote store, whose objects are written whole and cannot grow."""
    return "://" in str(path)


def check_output(path: epath.PathLike, option: str, *, folder: bool = False, parents: bool = True) -> None:
    """Raise ConfigError where no file, or with `folder` nothing in a folder, could be written. Makes nothing.

    To be called before the work whose result goes there. option: the argument that names `path`, for the message.
    parents: folders above it that are missing will be made. A path in a remote store is not looked at.
    """
    if not is_remote(path) and (reason := _why_not(Path(path), folder, parents)):
        raise ConfigError(f"{option}={path} cannot be written to: {reason}; give another {option}")


def _why_not(path: Path, folder: bool, parents: bool) -> str | None:
    """Why `path` cannot be written; None if it can."""
    try:
        if path.exists():  # also a device, such as /dev/stdout, whose folder need not be writable
            return _why_not_there(path, folder)
        above = next(parent for parent in path.absolute().parents if parent.exists())
        longest = os.pathconf(above, "PC_NAME_MAX")
    except OSError as error:
        return str(error.strerror)
    if any(len(os.fsencode(part)) > longest - _ROOM for part in path.parts):
        return "a name in it is too long"
    if above != path.absolute().parent and not parents and above.is_dir():
        return f"there is no folder {path.parent}: make it"
    return _why_not_there(above, folder=True)


def _why_not_there(path: Path, folder: bool) -> str | None:
    """As `_why_not`, of what is there."""
    if folder and not path.is_dir():
        return f"{path} is a file, not a folder"
    if not folder and path.is_dir():
        return f"{path} is a folder: name a file in it"
    if not os.access(path, os.W_OK | os.X_OK if folder else os.W_OK):
        return f"{path} is read-only, or somebody else's"
    return None


def write_text(path: epath.PathLike, text: str) -> None:
    """Replace the text of a file, see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Replace the content of a file; who is killed meanwhile leaves the old one."""
    path = epath.Path(path)
    if is_remote(path):  # a store does it of its own accord, and renaming there is a copy
        path.write_bytes(content)
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a power failure can leave the new name with zeros in it
    temporary.replace(path)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Within, True in one process at a time with the same local folder, False in others; nobody waits.

    The lock is gone when its process is, however that ends. File systems without locks give True.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass
        yield free
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Within, no other process is within with the same local folder. File systems without locks go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(building: Path, place: Path) -> None:
    """Rename the local folder `building`, which `tempfile.mkdtemp` made, to `place`; what was there is removed."""
    outdated = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    try:
        if place.exists():
            place.rename(outdated / "data")
        building.chmod(0o755)  # mkdtemp makes it private
        building.rename(place)
    finally:
        shutil.rmtree(outdated, ignore_errors=True)


def move(source: epath.Path, target: epath.Path) -> None:
    """Move a folder. In a store, which knows no folders, this copies every object before the first one goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(source):
        source.rename(target)
        return
    copy(source, target)
    source.rmtree()


def copy(source: epath.Path, target: epath.Path) -> None:
    """Copy what is in a folder into another one, which may be in another place."""
    for entry in source.iterdir():
        if entry.is_dir():
            copy(entry, target / entry.name)
        else:
            target.mkdir(parents=True, exist_ok=True)
            (target / entry.name).write_bytes(entry.read_bytes())
