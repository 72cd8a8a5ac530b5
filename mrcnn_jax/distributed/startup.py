"""Start of a run with several processes: connects them and warms up their collectives."""

from __future__ import annotations

import collections
import importlib.util
import os
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
    jax.config.update("jax_enable_preemption_service", False)  # it would intercept SIGTERM: see `training.interruption`
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
            if jax.process_count() == 1:  # a TPU slice of one host
                return
            _check_device_counts()
            host = cluster.coordinator and cluster.coordinator.rpartition(":")[0].strip("[]")
            store = collectives.connect(host)
        except ConfigError:
            raise
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"cannot connect the processes ({cluster.source}): {error}; give --coordinator, --num_processes and"
                " --process_id, or --num_processes=1 to use this host alone"
            ) from error
        failure.start_monitor(store, jax.process_index(), jax.process_count())
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


def has_tpu() -> bool:
    """Whether this host has TPU chips; see `cluster.detect`."""
    # On hosts without TPU chips JAX sets the variable, which keeps libtpu from asking the VM's metadata server.
    return "TPU_SKIP_MDS_QUERY" not in os.environ and importlib.util.find_spec("libtpu") is not None


def _check_device_counts() -> None:
    """Raise ConfigError on every process for different numbers of devices."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"the processes have different numbers of devices, {[counts[index] for index in sorted(counts)]}; give each"
            " the same number (CUDA_VISIBLE_DEVICES, JAX_NUM_CPU_DEVICES)"
        )


def _warm_up_collectives() -> None:
    """Sum over all devices once, while the processes are in step; `collectives.connect` has sent a first buffer.

    Gloo connects the devices at the first collective and waits at most 30 s. Later, a process that finds its program in
    the compilation cache may be minutes ahead of the others.
    """
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("devices",)), PartitionSpec("devices"))
    ones = jax.make_array_from_process_local_data(sharding, np.ones(jax.local_device_count(), np.int32))
    assert int(jax.jit(jnp.sum)(ones)) == jax.device_count()
