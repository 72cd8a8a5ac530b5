"""Date, hardware and versions of a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def describe_machine(device: str = "") -> str:
    """Return date, processor (or `device`) and versions in one line."""
    hardware = device or f"{os.cpu_count()} CPU cores at a load of {os.getloadavg()[0]:.1f}"
    return f"{datetime.date.today()}, {hardware}, Python {platform.python_version()}, jax {metadata.version('jax')}"


def torchvision_version(python: str) -> str:
    """Return the versions of torch and torchvision in an interpreter."""
    script = "import torch, torchvision; print('torch', torch.__version__ + ', torchvision', torchvision.__version__)"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
