"""Atomic writes, locks, and folder operations on local paths and in remote stores (gs://, s3://)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mrcnn_jax.errors import ConfigError

_SUFFIX_BYTES = 16  # that the names of temporary files add to a name


def user_path(text: str) -> Path:
    """Return a path from the command line with "~" expanded, which shells do not do in `--flag=~/folder`."""
    return Path(os.path.expanduser(text))


def cache_root() -> Path:
    """Return the folder of all caches: $MRCNN_JAX_CACHE, or ~/.cache/mrcnn_jax. It can be deleted at any time."""
    return user_path(os.environ.get("MRCNN_JAX_CACHE") or os.path.join("~", ".cache", "mrcnn_jax"))


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in a remote store, where objects are written as a whole and cannot be appended to."""
    return "://" in str(path)


def check_output(path: epath.PathLike, option: str, *, folder: bool = False, parents: bool = True) -> None:
    """Raise ConfigError if `path` cannot be written. Creates nothing; call before long work.

    option: command-line argument with the path, for the message.
    folder: whether the output is a folder rather than a file.
    parents: whether missing parent folders will be created.

    Paths in remote stores are not checked.
    """
    if not is_remote(path) and (reason := _why_not_writable(Path(path), folder, parents)):
        raise ConfigError(f"{option}={path} cannot be written to: {reason}; give another {option}")


def _why_not_writable(path: Path, folder: bool, parents: bool) -> str | None:
    """The reason why `path` cannot be written; None if it can."""
    try:
        if path.exists():  # including devices such as /dev/stdout, whose folder may be read-only
            return _why_existing_not_writable(path, folder)
        ancestor = next(parent for parent in path.absolute().parents if parent.exists())
        max_bytes = os.pathconf(ancestor, "PC_NAME_MAX")
    except OSError as error:
        return str(error.strerror)
    if any(len(os.fsencode(part)) > max_bytes - _SUFFIX_BYTES for part in path.parts):
        return "a name in it is too long"
    if ancestor != path.absolute().parent and not parents and ancestor.is_dir():
        return f"there is no folder {path.parent}: create it"
    return _why_existing_not_writable(ancestor, folder=True)


def _why_existing_not_writable(path: Path, folder: bool) -> str | None:
    """`_why_not_writable` of an existing file or folder."""
    if folder and not path.is_dir():
        return f"{path} is a file, not a folder"
    if not folder and path.is_dir():
        return f"{path} is a folder: name a file in it"
    if not os.access(path, os.W_OK | os.X_OK if folder else os.W_OK):
        return f"no permission to write to {path}"
    return None


def write_text(path: epath.PathLike, text: str) -> None:
    """Atomically replace a text file, see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Atomically replace a file: at any time it has either the old or the new content."""
    path = epath.Path(path)
    if is_remote(path):  # writes are atomic there, and renaming would copy
        path.write_bytes(content)
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power failure may leave zeros under the new name
    temporary.replace(path)


def file_hash(path: Path, algorithm: str) -> str:
    """Return the hexadecimal hash of a file, by an algorithm of `hashlib`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_hash(path: Path, algorithm: str, prefix: str) -> str | None:
    """Return what is wrong with a file whose hash must have the hexadecimal `prefix`; None if it has."""
    digest = file_hash(path, algorithm)
    return None if digest.startswith(prefix.lower()) else f"its {algorithm.upper()} is {digest}, not {prefix}..."


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a local folder; yields whether it is held.

    It is not held if another process holds it and `wait` is false. On file systems without locks, yields True. The lock
    is released when the process ends.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            locked = not isinstance(error, BlockingIOError)
        yield locked
    finally:
        os.close(descriptor)


def replace_folder(source: Path, target: Path) -> None:
    """Rename the local folder `source`, which `tempfile.mkdtemp` created, to `target`, replacing what is there."""
    outdated = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        if target.exists():
            target.rename(outdated / "data")
        source.chmod(0o755)  # mkdtemp creates it with 0o700
        source.rename(target)
    finally:
        shutil.rmtree(outdated, ignore_errors=True)


def move_folder(source: epath.Path, target: epath.Path) -> None:
    """Move a folder. A remote store, which has no folders, copies all objects before it deletes the first one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(source):
        source.rename(target)
        return
    copy_folder(source, target)
    source.rmtree()


def copy_folder(source: epath.Path, target: epath.Path) -> None:
    """Copy the content of a folder into another one, which may be in another file system or store."""
    for entry in source.iterdir():
        if entry.is_dir():
            copy_folder(entry, target / entry.name)
        else:
            target.mkdir(parents=True, exist_ok=True)
            (target / entry.name).write_bytes(entry.read_bytes())
