"""Files of a run, which may lie in a remote store (gs://, s3://): whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath


def user_path(text: str) -> Path:
    """The path that a person wrote; "~" is the home directory, which shells leave alone in `--flag=~/folder`."""
    return Path(os.path.expanduser(text))


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in a remote store, whose objects are written whole and cannot grow."""
    return "://" in str(path)


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
def alone(folder: Path) -> Iterator[None]:
    """Within, no other process is within with the same local folder. File systems without locks go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
