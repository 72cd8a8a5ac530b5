"""Is this process one of several, and where are the others? Flags and the environment say."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping

from mrcnn_jax.errors import ConfigError

PEER_TIMEOUT = 100  # seconds without a sign of life after which a process counts as lost
START_TIMEOUT = 300  # seconds in which all processes must have started


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that make one run; what is None is found by JAX."""

    source: str  # who says so
    count: int | None = None
    index: int | None = None
    coordinator: str | None = None  # host:port of the main process
    local_devices: tuple[int, ...] | None = None  # of the GPUs that this process sees; (): all
    method: str | None = "deactivate"  # which of JAX's own detections finds the rest; None: it tries them all


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags for `detect`, in the spelling of JAX and in that of other tools."""
    group = parser.add_argument_group(
        "several processes", "not needed under Slurm's srun and on TPU pod slices; the same command in every process"
    )

    def add(name: str, kind: type, default: int | None, metavar: str, text: str) -> None:
        names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        group.add_argument(*names, type=kind, default=default, metavar=metavar, help=text)

    add("coordinator", str, None, "HOST:PORT", "of process 0, with a port that is free there")
    add("num_processes", int, None, "N", "how many; 1: none but this one, whatever the environment says")
    add("process_id", int, None, "I", "which of them this is, from 0; process 0 writes all files")
    add("peer_timeout", int, PEER_TIMEOUT, "S", "seconds after which a silent process is lost (default: %(default)s)")
    add("start_timeout", int, START_TIMEOUT, "S", "seconds in which all must have come (default: %(default)s)")


def detect(
    flags: argparse.Namespace, environment: Mapping[str, str], tpu_hosts: Callable[[], int] = lambda: 1
) -> Cluster | None:
    """The processes of which this is one; None if it is alone.

    In this order: the flags, with $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID (or Kubernetes'
    $JOB_COMPLETION_INDEX) for those left out; a step of Slurm with several tasks; a TPU pod slice. `tpu_hosts` counts
    the hosts of a slice where no variable lists them. Raises ConfigError if what is said is incomplete or impossible.
    """
    slurm = _slurm(environment)
    coordinator = flags.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    count = _number("--num_processes", flags.num_processes, environment, "JAX_NUM_PROCESSES")
    index = _number("--process_id", flags.process_id, environment, "JAX_PROCESS_ID")
    if count == 1 and not index:
        return None
    if count is None and index is None and not flags.coordinator:
        found = slurm or _tpu(environment, tpu_hosts)
        if found or coordinator is None:
            return found and dataclasses.replace(found, coordinator=coordinator)
    if index is None:
        index = _number("", None, environment, "JOB_COMPLETION_INDEX")
    if coordinator is None or count is None or index is None:
        values = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
        missing = " and ".join(name for name, value in values.items() if value is None)
        raise ConfigError(
            f"{missing} missing: several processes need --coordinator=HOST:PORT --num_processes=N --process_id=I, or"
            " $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID; a process alone needs none of them"
        )
    _check(coordinator, count, index)
    return Cluster("flags or $JAX_COORDINATOR_ADDRESS", count, index, coordinator)


def _number(flag: str, value: int | None, environment: Mapping[str, str], variable: str) -> int | None:
    """Of the flag, or else of the variable."""
    if value is not None or variable not in environment:
        return value
    try:
        return int(environment[variable])
    except ValueError:
        raise ConfigError(f"${variable}={environment[variable]}: a whole number is expected") from None


def _check(coordinator: str, count: int, index: int) -> None:
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"--coordinator={coordinator} has no port; give HOST:PORT, a port that is free on that host")
    if not 0 <= index < count:
        raise ConfigError(f"--process_id={index} of --num_processes={count}: processes are numbered from 0 to N - 1")


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A step (srun) of several tasks; a batch script by itself is none, whatever the job has reserved."""
    count = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1 or "SLURM_PROCID" not in environment:
        return None
    index = int(environment["SLURM_PROCID"])
    return Cluster("Slurm", count, index, None, _slurm_devices(environment), method="slurm")


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...]:
    """GPUs of this task: those that Slurm shows to it alone, or the one of its number among those of the node."""
    here = _tasks_of_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"), int(environment.get("SLURM_NODEID", "0")))
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES"))
    if here == 1 or (visible is not None and len(visible.split(",")) < here):
        return ()
    return (int(environment.get("SLURM_LOCALID", "0")),)


def _tasks_of_node(text: str, node: int) -> int:
    """Slurm's "2(x3),1": two tasks on each of the first three nodes, one on the fourth."""
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts[node]


def _tpu(environment: Mapping[str, str], tpu_hosts: Callable[[], int]) -> Cluster | None:
    """A slice with several hosts, or several slices: their addresses are in variables (GKE) or with the VM (GCE)."""
    listed = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    hosts = tpu_hosts() if listed is None else len(listed.split(","))
    if hosts * int(environment.get("MEGASCALE_NUM_SLICES") or 1) == 1:
        return None
    return Cluster("the TPU pod slice", method=None)
