"""Start of a run with several processes: connects them and warms up their collectives."""

from __future__ import annotations

import json
import socket

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.distributed import collectives, failure
from mrcnn_jax.distributed.cluster import PEER_TIMEOUT, START_TIMEOUT, Cluster
from mrcnn_jax.errors import ConfigError

_EXTRA_TIMEOUT = 60  # seconds added to JAX's timeouts: it aborts at those, `failure` exits with a message before


def initialize(
    cluster: Cluster | None, *, peer_timeout: int = PEER_TIMEOUT, start_timeout: int = START_TIMEOUT
) -> None:
    """Connect to the other processes of `cluster`; None does nothing. Call before JAX initializes its devices.

    peer_timeout: seconds without a heartbeat after which a process counts as lost and all others exit.
    start_timeout: seconds to wait for all processes; then this one exits with status `failure.EXIT_PROCESS_LOST`.

    Raises ConfigError if JAX cannot connect, or if the processes have different numbers of devices.
    """
    if cluster is None:
        return
    _check_coordinator_port(cluster)
    # Else JAX would intercept SIGTERM before the training loop handles it: see `collectives.enable_preemption_sync`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with failure.startup_timeout(cluster, start_timeout):
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.num_processes,
                cluster.process_id,
                local_device_ids=cluster.local_devices,
                cluster_detection_method=cluster.method,
                initialization_timeout=start_timeout + _EXTRA_TIMEOUT,
                heartbeat_timeout_seconds=peer_timeout,
                shutdown_timeout_seconds=_EXTRA_TIMEOUT,
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"cannot connect the processes ({cluster.source}): {error}") from error
        state = collectives.global_state()
        failure.start_monitor(state.client, state.process_id, state.num_processes)
        _warm_up_collectives()
    if collectives.is_main():
        print(
            f"{jax.process_count()} processes ({cluster.source}), {jax.device_count()} devices; if a process is silent"
            f" for {peer_timeout} s, the others exit",
            flush=True,
        )


def _check_coordinator_port(cluster: Cluster) -> None:
    """Raise ConfigError if process 0 cannot bind the coordinator's port, where JAX would crash."""
    if cluster.process_id != 0 or cluster.coordinator is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(cluster.coordinator.rsplit(":", 1)[1])))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--coordinator={cluster.coordinator}: process 0 cannot use this port ({error}); give another one in"
                " all processes"
            ) from error


def count_tpu_hosts() -> int:
    """Number of hosts in the slice of this TPU VM, from its metadata; 1 without a TPU. See `cluster.detect`."""
    from jax._src import cloud_tpu_init
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return 1
    try:
        return len(GceTpuCluster._get_worker_list_in_slice()) if GceTpuCluster.is_env_present() else 1
    except Exception as error:  # the metadata server can fail in many ways
        raise ConfigError(
            f"cannot read the number of hosts of the TPU slice from the VM's metadata ({error}); give --coordinator,"
            " --num_processes and --process_id, or --num_processes=1 to use this host alone"
        ) from error


def _warm_up_collectives() -> None:
    """Run each kind of collective once, while the processes are in step.

    Gloo connects the devices at the first collective and waits at most 30 s. Later, a process that finds its program in
    the compilation cache may be minutes ahead of the others. Raises ConfigError for different numbers of devices.
    """
    counts = json.loads(b"[" + b",".join(collectives.gather_small(str(jax.local_device_count()).encode())) + b"]")
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the processes have different numbers of devices, {counts}; give each the same number"
            " (CUDA_VISIBLE_DEVICES, JAX_NUM_CPU_DEVICES)"
        )
    collectives.gather_bytes(b"")
    collectives.broadcast(np.zeros(1))
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("devices",)), PartitionSpec("devices"))
    ones = jax.make_array_from_process_local_data(sharding, np.ones(jax.local_device_count(), np.int32))
    assert int(jax.jit(jnp.sum)(ones)) == jax.device_count()
