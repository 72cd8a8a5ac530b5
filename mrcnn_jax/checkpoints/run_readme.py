"""README.md in the work directory of a run, which describes its files and how to use them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from etils import epath

from mrcnn_jax import __version__
from mrcnn_jax.config import Config
from mrcnn_jax.runtime import files

README = "README.md"
_TEMPLATE = Path(__file__).with_name("run_readme.md")


def write(workdir: epath.PathLike, config: Config) -> None:
    """Write README.md. Raises OSError."""
    path = str(workdir)
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        name=config.name,
        version=__version__,
        folder=shlex.quote(path),
        path=path,
        start_command=_start_command(),
    )
    files.write_text(epath.Path(workdir) / README, text)


def _start_command() -> str:
    """A paragraph with the command line of this process if it is `mrcnn train` or train.py; otherwise empty."""
    name = Path(sys.argv[0]).name
    if name == "train.py":
        command = ["python", *sys.argv]
    elif name == "mrcnn":
        command = [name, *sys.argv[1:]]
    else:
        return ""
    return f"\nIt was started with\n\n```bash\n{shlex.join(command)}\n```\n"
