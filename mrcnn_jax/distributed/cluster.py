"""Detection of the processes of a run from command-line flags and environment variables."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping

from mrcnn_jax.errors import ConfigError

PEER_TIMEOUT = 100  # seconds without a heartbeat after which a process counts as lost
START_TIMEOUT = 300  # seconds within which all processes must have started


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Arguments of `jax.distributed.initialize`; JAX detects those that are None."""

    source: str  # where the values come from, for messages
    num_processes: int | None = None
    process_id: int | None = None
    coordinator: str | None = None  # host:port of process 0
    local_devices: tuple[int, ...] | None = None  # GPUs of this process, among those that it sees; (): all
    method: str | None = "deactivate"  # JAX's cluster detection method; None: JAX tries all of them


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `detect` reads, each spelled with underscores (as in JAX) and with dashes."""
    group = parser.add_argument_group(
        "multi-process options",
        "Run the same command in every process. These options are not needed\n"
        "under Slurm's srun and on TPU pod slices.",
    )

    def add(name: str, kind: type, default: int | None, metavar: str, text: str) -> None:
        names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        group.add_argument(*names, type=kind, default=default, metavar=metavar, help=text)

    add("coordinator", str, None, "HOST:PORT", "address of process 0, with a port that is free on its host")
    add("num_processes", int, None, "N", "number of processes; 1 ignores the environment")
    add("process_id", int, None, "I", "index of this process, from 0; process 0 writes all files")
    add("peer_timeout", int, PEER_TIMEOUT, "S", "seconds until a silent process counts as lost (default: %(default)s)")
    add("start_timeout", int, START_TIMEOUT, "S", "seconds to wait for all processes to start (default: %(default)s)")


def detect(flags: argparse.Namespace, environment: Mapping[str, str], *, has_tpu: bool = False) -> Cluster | None:
    """Return the cluster that this process belongs to, or None if it runs alone.

    Sources, in this order:

    1. the flags, with $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID (or Kubernetes'
       $JOB_COMPLETION_INDEX) in place of those that are missing;
    2. a Slurm step with several tasks;
    3. a TPU pod slice. If no variable lists its hosts, a host that has a TPU may be one of several, as JAX finds out.

    Raises ConfigError if the values are incomplete or invalid.
    """
    slurm = _slurm(environment)
    coordinator = flags.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _integer(flags.num_processes, environment, "JAX_NUM_PROCESSES")
    process_id = _integer(flags.process_id, environment, "JAX_PROCESS_ID")
    if num_processes == 1 and not process_id:
        return None
    if num_processes is None and process_id is None and not flags.coordinator:
        cluster = slurm or _tpu(environment, has_tpu)
        if cluster or coordinator is None:
            return cluster and dataclasses.replace(cluster, coordinator=coordinator)
    if process_id is None:
        process_id = _integer(None, environment, "JOB_COMPLETION_INDEX")
    if coordinator is None or num_processes is None or process_id is None:
        values = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
        missing = " and ".join(name for name, value in values.items() if value is None)
        raise ConfigError(
            f"{missing} missing: to run several processes, give --coordinator=HOST:PORT --num_processes=N"
            " --process_id=I or set $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID; to run a single"
            " process, give none of them"
        )
    _check(coordinator, num_processes, process_id)
    return Cluster("flags or $JAX_COORDINATOR_ADDRESS", num_processes, process_id, coordinator)


def _integer(flag: int | None, environment: Mapping[str, str], variable: str) -> int | None:
    """The value of a flag, or else of an environment variable; None without both."""
    if flag is not None or variable not in environment:
        return flag
    try:
        return int(environment[variable])
    except ValueError:
        raise ConfigError(f"${variable}={environment[variable]}: expected an integer") from None


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"--coordinator={coordinator} has no port; give HOST:PORT, a port that is free on that host")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} with --num_processes={num_processes}: processes are numbered from 0 to N - 1"
        )


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster of a Slurm step (srun) with several tasks; None in a batch script outside of srun."""
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks == 1 or "SLURM_PROCID" not in environment:
        return None
    task = int(environment["SLURM_PROCID"])
    return Cluster("Slurm", num_tasks, task, None, _slurm_devices(environment), method="slurm")


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...]:
    """GPUs of this task: all that it sees if Slurm has assigned them per task, else the one with its local id."""
    tasks = _tasks_on_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"), int(environment.get("SLURM_NODEID", "0")))
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES"))
    if tasks == 1 or (visible is not None and len(visible.split(",")) < tasks):
        return ()
    return (int(environment.get("SLURM_LOCALID", "0")),)


def _tasks_on_node(text: str, node: int) -> int:
    """Number of tasks on a node, from Slurm's notation: "2(x3),1" is two on each of three nodes, one on the fourth."""
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts[node]


def _tpu(environment: Mapping[str, str], has_tpu: bool) -> Cluster | None:
    """The cluster of a TPU slice with several hosts, or of several slices.

    Addresses come from environment variables (GKE) or, through JAX, from the VM's metadata (GCE).
    """
    cluster = Cluster("the TPU pod slice", method=None)
    addresses = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if addresses is None:
        return cluster if has_tpu else None
    hosts = len(addresses.split(",")) * int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    return cluster if hosts > 1 else None
