"""A run that is killed at random moments ends exactly as an uninterrupted one; a short run of `support/chaos.py`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.launch import ROOT


@pytest.mark.slow
def test_run_killed_at_random_moments(tmp_path):
    command = [sys.executable, "-m", "support.chaos", "--kills=2", "--linear", f"--keep={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"^(\d+) kills in ", done.stdout, re.MULTILINE)[1]) >= 2
    assert int(re.search(r"^ +(\d+) in a save$", done.stdout, re.MULTILINE)[1]) >= 1
    assert done.stdout.endswith("every run ended exactly as the uninterrupted one\n")
