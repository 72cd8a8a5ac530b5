"""Where something was measured: date, hardware, versions."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def machine(device: str = "") -> str:
    """In words; `device` in place of the processor."""
    hardware = device or f"{os.cpu_count()} CPU cores at a load of {os.getloadavg()[0]:.1f}"
    return f"{datetime.date.today()}, {hardware}, Python {platform.python_version()}, jax {metadata.version('jax')}"


def torchvision_version(python: str) -> str:
    """Of an interpreter that has it."""
    script = "import torch, torchvision; print('torch', torch.__version__ + ', torchvision', torchvision.__version__)"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
