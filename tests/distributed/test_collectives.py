"""Detection of the processes of a run, start-up, and collectives on host data."""

from __future__ import annotations

import argparse
import contextlib
import re
import socket

import jax
import numpy as np
import pytest
from support.launch import free_port, launch

from mrcnn_jax.distributed import cluster, collectives, startup
from mrcnn_jax.errors import ConfigError

pytestmark = pytest.mark.medium

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[07-10]",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "7",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
JAX = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}


def detect(arguments="", environment=None, has_tpu=False):
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    return cluster.detect(parser.parse_args(arguments.split()), environment or {}, has_tpu=has_tpu)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ("", {}),
        ("--num_processes=1", JAX | {"JAX_PROCESS_ID": "0"}),
        ("--num_processes=1", {"TPU_WORKER_HOSTNAMES": "a,b"}),
        ("", {"JAX_NUM_PROCESSES": "1"}),
        ("", SLURM | {"SLURM_STEP_NUM_TASKS": "1"}),
        # sbatch without srun: eight tasks are reserved, but the batch script runs once
        ("", {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}),
        ("", {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}),
        (
            "",
            {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        ),  # indexed job, independent runs
    ],
)
def test_single_process(arguments, environment):
    assert detect(arguments, environment) is None


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ("--coordinator=host:1 --num_processes=4 --process_id=2", {}),
        ("--coordinator host:1 --num-processes 4 --process-id 2", SLURM),
        ("", JAX),
        ("", JAX | SLURM),
        ("--process_id=2", JAX | {"JAX_PROCESS_ID": "3"}),
        ("", {name: JAX[name] for name in list(JAX)[:2]} | {"JOB_COMPLETION_INDEX": "2"}),
    ],
)
def test_flags_and_variables(arguments, environment):
    detected = detect(arguments, environment)
    assert (detected.coordinator, detected.num_processes, detected.process_id) == ("host:1", 4, 2)
    assert detected.method == "deactivate"


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ()),  # --gpus-per-task=1: each task sees its own GPU
        ({"SLURM_NODEID": "3", "SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, ()),  # the only one on its node
    ],
)
def test_slurm_step(environment, devices):
    detected = detect("", SLURM | environment)
    assert (detected.source, detected.num_processes, detected.process_id) == ("Slurm", 7, 3)
    assert (detected.coordinator, detected.method, detected.local_devices) == (None, "slurm", devices)


def test_coordinator_of_a_slurm_step():
    detected = detect("", SLURM | {"JAX_COORDINATOR_ADDRESS": "node07:5"})
    assert (detected.source, detected.coordinator) == ("Slurm", "node07:5")


@pytest.mark.parametrize(
    ("environment", "has_tpu"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, False),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, False),
        ({}, True),  # JAX finds the hosts in the VM's metadata
    ],
)
def test_tpu_slice(environment, has_tpu):
    detected = detect("", environment, has_tpu)
    assert detected == cluster.Cluster("the TPU pod slice", method=None)


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        ("--coordinator=host:1 --process_id=0", {}, "--num_processes missing"),
        ("--num_processes=2", {}, "--coordinator and --process_id missing"),
        ("--coordinator=host:1", SLURM, "--num_processes and --process_id missing"),
        ("", {"JAX_COORDINATOR_ADDRESS": "host:1"}, "--num_processes and --process_id missing"),
        ("--process_id=1", {}, "--coordinator and --num_processes missing"),
        ("--coordinator=host --num_processes=2 --process_id=0", {}, "has no port"),
        ("--coordinator=host:1 --num_processes=2 --process_id=2", {}, "numbered from 0 to N - 1"),
        ("--coordinator=host:1 --num_processes=2 --process_id=-1", {}, "numbered from 0 to N - 1"),
        ("--num_processes=1 --process_id=1", JAX, "numbered from 0 to N - 1"),
        ("", JAX | {"JAX_NUM_PROCESSES": "two"}, r"\$JAX_NUM_PROCESSES=two: expected an integer"),
    ],
)
def test_invalid_arguments(arguments, environment, text):
    with pytest.raises(ConfigError, match=text):
        detect(arguments, environment)


def test_single_process_collectives_are_the_identity():
    tree = {"a": np.zeros(3)}
    assert collectives.is_main()
    assert collectives.broadcast(tree) is tree
    assert collectives.broadcast_object(b"message") == b"message"
    assert collectives.gather(b"message") == [b"message"]
    assert collectives.run_on_main(lambda: b"done") == b"done"
    with pytest.raises(ConfigError, match="invalid"):
        collectives.run_on_main(lambda: (_ for _ in ()).throw(ConfigError("invalid")))
    collectives.check_same({"seed": float("nan")}, "configuration")
    startup.initialize(None)
    assert not jax.distributed.is_initialized()


def test_differences_name_value_and_process():
    main = ("node0", {"train.seed": "0", "data.train: images": "16", "model.mask.channels": "8"})
    same = ("node1", dict(main[1]))
    assert collectives.find_differences([main, same, same]) == []
    other = ("node2", {"train.seed": "1", "data.train: images": "16", "model.mask": "null"})
    assert collectives.find_differences([main, same, other, main]) == [
        "train.seed is 1 in process 2 (node2) and 0 in process 0 (node0)",
        "model.mask.channels is absent in process 2 (node2) and 8 in process 0 (node0)",
        "model.mask is null in process 2 (node2) and absent in process 0 (node0)",
    ]
    assert len(collectives.find_differences([other, main, same])) == 6


def test_two_processes(tmp_path):
    """`support/collectives_worker.py` ends with an error of process 0: both exit, only process 0 prints it."""
    with launch(["tests/support/collectives_worker.py"], tmp_path, processes=2, devices=2) as job:
        assert job.wait(timeout=120) == [2, 2], job.output(0) + job.output(1)
        outputs = job.output(0), job.output(1)
    assert "2 processes (flags or $JAX_COORDINATOR_ADDRESS), 4 devices" in outputs[0]
    assert "process 0: collectives work" in outputs[0]
    assert "process 1: collectives work" in outputs[1]
    assert "process 0 of 2: error: no such file: a.txt" in outputs[0]
    assert "no such file" not in outputs[1]
    assert "Traceback" not in "".join(outputs)


def test_occupied_port():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        occupied = cluster.Cluster("flags", 2, 0, f"localhost:{other.getsockname()[1]}")
        with pytest.raises(ConfigError, match="cannot use this port"):
            startup.initialize(occupied)


def test_start_timeout(tmp_path):
    """Of process 0, and of a process that cannot reach it."""
    with contextlib.ExitStack() as stack:
        jobs = {}
        for index, port in enumerate((free_port(), 1)):  # no process listens on port 1
            address = f"localhost:{port}"
            flags = [f"--coordinator={address}", "--num_processes=3", f"--process_id={index}", "--start_timeout=2"]
            worker = launch(["tests/support/collectives_worker.py", *flags], tmp_path / str(index))
            jobs[address] = stack.enter_context(worker)
        for address, job in jobs.items():
            assert job.wait(timeout=60) == [75]
            message = rf"not all 3 processes started within 2 s .* reach process 0 at {address}\?.*--start_timeout=S"
            assert re.search(message, job.output())
