"""Several processes: which the flags and the environment mean, that they meet, and what they tell each other."""

from __future__ import annotations

import argparse
import contextlib
import re
import socket

import jax
import numpy as np
import pytest
from support.launch import free_port, launch

from mrcnn_jax.distributed import cluster, collectives
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


def detect(arguments="", environment=None, tpu_hosts=lambda: 1):
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    return cluster.detect(parser.parse_args(arguments.split()), environment or {}, tpu_hosts)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ("", {}),
        ("--num_processes=1", JAX | {"JAX_PROCESS_ID": "0"}),
        ("--num_processes=1", {"TPU_WORKER_HOSTNAMES": "a,b"}),
        ("", {"JAX_NUM_PROCESSES": "1"}),
        ("", SLURM | {"SLURM_STEP_NUM_TASKS": "1"}),
        # sbatch without srun: eight tasks are reserved, but this is the script, which runs once.
        ("", {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}),
        ("", {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}),
        ("", {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}),  # an indexed job of many runs
    ],
)
def test_a_process_alone(arguments, environment):
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
def test_processes_that_are_told(arguments, environment):
    found = detect(arguments, environment)
    assert (found.coordinator, found.count, found.index) == ("host:1", 4, 2)
    assert found.method == "deactivate"


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ()),  # --gpus-per-task=1 shows to each task its own
        ({"SLURM_NODEID": "3", "SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, ()),  # the only one on its node
    ],
)
def test_a_step_of_slurm(environment, devices):
    found = detect("", SLURM | environment)
    assert (found.source, found.count, found.index, found.coordinator) == ("Slurm", 7, 3, None)
    assert (found.method, found.local_devices) == ("slurm", devices)


def test_the_coordinator_of_a_slurm_step_can_be_told():
    found = detect("", SLURM | {"JAX_COORDINATOR_ADDRESS": "node07:5"})
    assert (found.source, found.coordinator) == ("Slurm", "node07:5")


@pytest.mark.parametrize(
    ("environment", "hosts"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, 1),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, 1),
        ({}, 4),  # of the VM's metadata
    ],
)
def test_a_tpu_slice_is_left_to_jax(environment, hosts):
    found = detect("", environment, lambda: hosts)
    assert (found.coordinator, found.count, found.index, found.method) == (None, None, None, None)


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
        ("", JAX | {"JAX_NUM_PROCESSES": "two"}, r"\$JAX_NUM_PROCESSES=two: a whole number"),
    ],
)
def test_what_cannot_be(arguments, environment, text):
    with pytest.raises(ConfigError, match=text):
        detect(arguments, environment)


def test_one_process_talks_to_itself():
    tree = {"a": np.zeros(3)}
    assert collectives.is_main()
    assert collectives.broadcast(tree) is tree
    assert collectives.broadcast_bytes(b"said") == b"said"
    assert collectives.gather_bytes(b"said") == [b"said"]
    assert collectives.on_main(lambda: b"done") == b"done"
    with pytest.raises(ConfigError, match="ours"):
        collectives.on_main(lambda: (_ for _ in ()).throw(ConfigError("ours")))
    collectives.check_same({"seed": float("nan")}, "configuration")
    collectives.watch_preemption()
    collectives.join(None)
    assert not jax.distributed.is_initialized()


def test_values_that_differ_are_named_with_their_process():
    """As every process gets them: the host, and the values as JSON."""
    ours = ("node0", {"train.seed": "0", "data.train: images": "16", "model.mask.channels": "8"})
    same = ("node1", dict(ours[1]))
    assert collectives.disagreements([ours, same, same]) == []
    other = ("node2", {"train.seed": "1", "data.train: images": "16", "model.mask": "null"})
    assert collectives.disagreements([ours, same, other, ours]) == [
        "train.seed is 1 in process 2 (node2) and 0 in process 0 (node0)",
        "model.mask.channels is absent in process 2 (node2) and 8 in process 0 (node0)",
        "model.mask is null in process 2 (node2) and absent in process 0 (node0)",
    ]
    assert len(collectives.disagreements([other, ours, same])) == 6


def test_two_processes_talk(tmp_path):
    """See `support/collectives_worker.py`. At its end the main process meets an error: it ends both, is said once."""
    with launch(["tests/support/collectives_worker.py"], tmp_path, processes=2, devices=2) as job:
        assert job.wait(timeout=120) == [2, 2], job.output(0) + job.output(1)
        said = job.output(0), job.output(1)
    assert "2 processes (flags or $JAX_COORDINATOR_ADDRESS), 4 devices" in said[0]
    assert "process 0 has talked" in said[0]
    assert "process 1 has talked" in said[1]
    assert "process 0 of 2: error: there is no such thing" in said[0]
    assert "no such thing" not in said[1]
    assert "Traceback" not in "".join(said)


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = cluster.Cluster("flags", 2, 0, f"localhost:{other.getsockname()[1]}")
        with pytest.raises(ConfigError, match="cannot have this port"):
            collectives.join(taken)


def test_others_that_do_not_come(tmp_path):
    """Two of them, each in vain: the main process, and one that does not find it."""
    with contextlib.ExitStack() as stack:
        jobs = {}
        for index, port in enumerate((free_port(), 1)):  # nobody answers at port 1
            address = f"localhost:{port}"
            flags = [f"--coordinator={address}", "--num_processes=3", f"--process_id={index}", "--start_timeout=2"]
            worker = launch(["tests/support/collectives_worker.py", *flags], tmp_path / str(index))
            jobs[address] = stack.enter_context(worker)
        for address, job in jobs.items():
            assert job.wait(timeout=60) == [75]
            said = rf"not all 3 processes have come in 2 s .* reach process 0 at {address}\?.*--start_timeout=S"
            assert re.search(said, job.output())
