"""Many processes, one run: how they meet, and what they tell each other beside the training step.

Arrays go through collectives of all devices, as raw bytes. Messages go through the key-value store of JAX's
coordination service: to wait for one does not occupy the devices, has no time limit of a network library, and lets a
signal through. Every process must make the same calls in the same order; with one process each of them is the identity.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.distributed import failure
from mrcnn_jax.distributed.cluster import PEER_TIMEOUT, START_TIMEOUT, Cluster
from mrcnn_jax.errors import USER_ERRORS, ConfigError, listing, shown

_PIECE = 1 << 26  # bytes of the largest collective
_SMALLEST = 1 << 10  # pieces are powers of two from here on, so that few programs are compiled
_ALIGNMENT = 16  # of an array in the bytes of a tree
_GRACE = 60  # seconds after which JAX would abort, where we end with a message first
_NAMED = 6  # differences of processes that a message lists one by one
_ABSENT = "absent"  # a value that a process does not have
_LOOK_UP = 1_000  # milliseconds after which a waiting process lets Python handle its signals

_numbers = itertools.count()  # of the messages: the same in all processes, since they make the same calls


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """The NumPy arrays of the main process, to the bit, on every process; the others give arrays of the same shapes.

    The arrays travel as one sequence of bytes, in few large collectives. With one process, `tree` itself.
    """
    if jax.process_count() == 1:
        return tree
    broadcast_bytes(b"" if is_main() else None)  # the main process may take long to come here; signals are heard
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    ends = list(itertools.accumulate(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays))
    places = [end - -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for end, array in zip(ends, arrays, strict=True)]
    content = np.zeros(ends[-1] if ends else 0, np.uint8)
    views = [
        content[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        for place, array in zip(places, arrays, strict=True)
    ]
    if is_main():
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
    for begin, end, size in _pieces(len(content)):
        piece = np.zeros(size, np.uint8)
        piece[: end - begin] = content[begin:end]
        content[begin:end] = _collect(multihost_utils.broadcast_one_to_all, piece)[: end - begin]
    return jax.tree.unflatten(structure, views)


def broadcast_bytes(content: bytes | None) -> bytes:
    """The bytes of the main process, on every process; the others give None.

    For messages of up to a few megabytes. The others wait as long as the main process takes, and obey signals.
    """
    if jax.process_count() == 1:
        assert content is not None
        return content
    key = f"mrcnn_jax/{next(_numbers)}"
    if is_main():
        assert content is not None
        store().key_value_set_bytes(key, content)
        return content
    return wait_for(key)


def gather_bytes(content: bytes) -> list[bytes]:
    """The bytes of every process, in order, on every process; of any size."""
    count = jax.process_count()
    if count == 1:
        return [content]
    sizes = _collect(multihost_utils.process_allgather, np.frombuffer(np.int64(len(content)).tobytes(), np.uint8))
    lengths = np.ascontiguousarray(sizes).view(np.int64).reshape(count)
    shares = np.zeros((count, lengths.max()), np.uint8)
    for begin, end, size in _pieces(shares.shape[1]):
        piece = np.zeros(size, np.uint8)
        part = np.frombuffer(content[begin:end], np.uint8)
        piece[: len(part)] = part
        shares[:, begin:end] = _collect(multihost_utils.process_allgather, piece)[:, : end - begin]
    return [share[:length].tobytes() for share, length in zip(shares, lengths, strict=True)]


def on_main(function: Callable[[], bytes]) -> bytes:
    """What `function` returns, on every process; only the main process calls it.

    What it raises of `USER_ERRORS` is raised on every process: the same kind of error with the same text.
    """
    if is_main():
        try:
            content = function()
        except USER_ERRORS as error:
            kind = next(kind for kind in USER_ERRORS if isinstance(error, kind))
            broadcast_bytes(b"-" + json.dumps([kind.__name__, str(error)]).encode())
            raise _everywhere(error) from None
        broadcast_bytes(b"+" + content)
        return content
    answer = broadcast_bytes(None)
    if answer[:1] == b"+":
        return answer[1:]
    name, text = json.loads(answer[1:])
    raise _everywhere({kind.__name__: kind for kind in USER_ERRORS}[name](text))


def check_same(values: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError on every process unless all of them give equal `values`, which JSON can hold.

    `what` says whose values they are: "configuration". Processes may come minutes apart; signals are obeyed.
    """
    if jax.process_count() == 1:
        return
    key = f"mrcnn_jax/{next(_numbers)}"
    own = {name: json.dumps(value) for name, value in values.items()}
    store().key_value_set_bytes(f"{key}/{jax.process_index()}", json.dumps([socket.gethostname(), own]).encode())

    def compare() -> bytes:
        shares = [json.loads(wait_for(f"{key}/{index}")) for index in range(jax.process_count())]
        if found := disagreements(shares):
            raise ConfigError(
                f"the processes do not have the same {what}: {listing(found, _NAMED)}. Start all of them with the same"
                " command, the same version of the program and equal copies of the data"
            )
        return b""

    on_main(compare)


def disagreements(shares: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Which processes differ from process 0 in which values; `shares` has host and values of each, as JSON."""
    (main, expected), *others = shares
    return [
        f"{name} is {shown(given.get(name, _ABSENT))} in process {index} ({host}) and"
        f" {shown(expected.get(name, _ABSENT))} in process 0 ({main})"
        for index, (host, given) in enumerate(others, 1)
        for name in {**expected, **given}
        if given.get(name) != expected.get(name)
    ]


def watch_preemption() -> None:
    """From here on SIGTERM, and the cloud's notice, wait for `multihost_utils.reached_preemption_sync_point`.

    JAX's handler takes the place of Python's. Does nothing with one process, or when called again.
    """
    if jax.process_count() > 1 and _runtime().preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        _runtime().initialize_preemption_sync_manager()


def join(cluster: Cluster | None, *, peer_timeout: int = PEER_TIMEOUT, start_timeout: int = START_TIMEOUT) -> None:
    """Meet the other processes of `cluster` (None: there are none). To be called before JAX looks for its devices.

    A process that gives no sign of life for `peer_timeout` seconds is lost, and all others end. When they have not all
    come after `start_timeout` seconds, this process ends with exit status `peers.LOST`. Raises ConfigError if JAX
    cannot find the others, or they have different numbers of devices.
    """
    if cluster is None:
        return
    _check_port(cluster)
    # JAX would answer SIGTERM from now on, but nobody asks it before the training loop: see `watch_preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with failure.expected(cluster, start_timeout):
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.count,
                cluster.index,
                local_device_ids=cluster.local_devices,
                cluster_detection_method=cluster.method,
                initialization_timeout=start_timeout + _GRACE,  # it would abort; `expected` ends with a message
                heartbeat_timeout_seconds=peer_timeout,
                shutdown_timeout_seconds=_GRACE,
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"the processes cannot meet ({cluster.source}): {error}") from error
        failure.watch(store(), _runtime().process_id, _runtime().num_processes)
        _warm_up_collectives()
    if is_main():
        print(
            f"{jax.process_count()} processes ({cluster.source}), {jax.device_count()} devices; when one is silent for"
            f" {peer_timeout} s, the others end",
            flush=True,
        )


def _check_port(cluster: Cluster) -> None:
    """Raise ConfigError if the main process cannot have the coordinator's port, where JAX would crash."""
    if cluster.index != 0 or cluster.coordinator is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(cluster.coordinator.rsplit(":", 1)[1])))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--coordinator={cluster.coordinator}: process 0 cannot have this port ({error}); give another one,"
                " in all processes"
            ) from error


def tpu_hosts() -> int:
    """How many hosts the slice of this TPU VM has, of its metadata; 1 where there is no TPU. See `cluster.detect`."""
    from jax._src import cloud_tpu_init
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return 1
    try:
        return len(GceTpuCluster._get_worker_list_in_slice()) if GceTpuCluster.is_env_present() else 1
    except Exception as error:  # whatever goes wrong between us and the metadata server
        raise ConfigError(
            f"the VM does not say how many hosts its TPU slice has ({error}); give --coordinator, --num_processes and"
            " --process_id, or --num_processes=1 for this host alone"
        ) from error


def _warm_up_collectives() -> None:
    """A sum over all devices, and what `broadcast` does: gloo connects the devices of a sum at the first, for 30 s.

    Later a process that finds its program in the compilation cache may be minutes ahead of one that does not.
    """
    counts = json.loads(b"[" + b",".join(_all(str(jax.local_device_count()).encode())) + b"]")
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the processes have different numbers of devices, {counts}; they must be the same"
            " (CUDA_VISIBLE_DEVICES, JAX_NUM_CPU_DEVICES)"
        )
    gather_bytes(b"")
    broadcast(np.zeros(1))
    everybody = NamedSharding(Mesh(np.asarray(jax.devices()), ("devices",)), PartitionSpec("devices"))
    ones = jax.make_array_from_process_local_data(everybody, np.ones(jax.local_device_count(), np.int32))
    assert int(jax.jit(jnp.sum)(ones)) == jax.device_count()


def _all(content: bytes) -> list[bytes]:
    """Small `gather_bytes` through the store, in which processes need not agree on their devices."""
    number = next(_numbers)
    store().key_value_set_bytes(f"mrcnn_jax/{number}/{jax.process_index()}", content)
    return [wait_for(f"mrcnn_jax/{number}/{index}") for index in range(jax.process_count())]


def _everywhere(error: Exception) -> Exception:
    error.everywhere = True  # type: ignore[attr-defined]  # see `command_line`
    return error


def store() -> Any:
    """The client of the coordination service: private to JAX, but Orbax builds on it too."""
    return _runtime().client


def _runtime() -> Any:
    from jax._src import distributed

    return distributed.global_state


def wait_for(key: str) -> bytes:
    """The value of `key` in the store, as soon as there is one."""
    while True:
        try:
            return bytes(store().blocking_key_value_get_bytes(key, _LOOK_UP))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _pieces(size: int) -> Iterator[tuple[int, int, int]]:
    """Begin and end of each piece of `size` bytes, and the power of two that it is padded to."""
    for begin in range(0, size, _PIECE):
        length = min(_PIECE, size - begin)
        yield begin, begin + length, max(_SMALLEST, 1 << (length - 1).bit_length())


def _collect(collective: Callable[[np.ndarray], Any], content: np.ndarray) -> np.ndarray:
    """`collective` of bytes, carried as 32-bit words (no sum of theirs rounds, and every kind of device adds them)."""
    with jax.transfer_guard("allow"):
        result = np.asarray(collective(content.view(np.uint32)))
    return np.ascontiguousarray(result).view(np.uint8)
