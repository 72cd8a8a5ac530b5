"""The training step as `jit(shard_map)` equals the one by `pmap` to the bit.

Should JAX remove `pmap`: `CompiledTrainStep` calls `shard_map_step.pmap` instead, and with several processes state, key
and batch are placed as `shard_map_step.place_globally` does.
"""

from __future__ import annotations

import pytest
from support import shard_map_step
from support.launch import launch

pytestmark = pytest.mark.medium


def test_two_devices():
    shard_map_step.compare_steps()


def test_two_processes(tmp_path):
    with launch(["tests/support/shard_map_step.py"], tmp_path, processes=2, devices=2) as job:
        job.succeed(timeout=120)
        for process in range(2):
            assert f"process {process}: equal over 4 devices" in job.output(process)
