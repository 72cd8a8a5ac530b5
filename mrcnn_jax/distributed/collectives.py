"""Collective operations of several processes on host data.

Arrays are sent with JAX collectives over all devices, as raw bytes. Messages are sent through the key-value store of
JAX's coordination service: waiting for one neither occupies the devices nor blocks signals, and has no network timeout.
Every process must make the same calls in the same order. With one process, each function is the identity.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mrcnn_jax.errors import USER_ERRORS, ConfigError, format_list, format_value

_MAX_CHUNK = 1 << 26  # bytes of the largest collective
_MIN_CHUNK = 1 << 10  # bytes; chunks are padded to powers of two, so that few programs are compiled
_ALIGNMENT = 16  # bytes, of each array in the buffer of a pytree
_MAX_LISTED = 6  # differences between processes that an error message lists
_ABSENT = "absent"  # shown for a value that a process does not have
_POLL_MS = 1_000  # a waiting process returns to Python this often, to handle signals

_message_ids = itertools.count()  # equal in all processes, because all make the same calls


def is_main() -> bool:
    """True on process 0, which writes files and prints."""
    return jax.process_index() == 0


def broadcast(tree: Any) -> Any:
    """Return process 0's pytree of NumPy arrays on every process, bit for bit.

    The other processes pass arrays of the same shapes and dtypes. The arrays are sent as one buffer, in a few large
    collectives. With one process, returns `tree` itself.
    """
    if jax.process_count() == 1:
        return tree
    # Process 0 may arrive much later. Unlike a collective, this wait has no timeout and lets signals through.
    broadcast_bytes(b"" if is_main() else None)
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    buffer, views = _allocate_like(arrays)
    if is_main():
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
    for begin, end, size in _chunks(len(buffer)):
        chunk = np.zeros(size, np.uint8)
        chunk[: end - begin] = buffer[begin:end]
        buffer[begin:end] = _run_collective(multihost_utils.broadcast_one_to_all, chunk)[: end - begin]
    return jax.tree.unflatten(structure, views)


def _allocate_like(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A buffer of bytes, and for each array an aligned view of the buffer with its shape and dtype."""
    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    offsets = list(itertools.accumulate(sizes, initial=0))
    buffer = np.zeros(offsets[-1], np.uint8)
    views = [
        buffer[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        for offset, array in zip(offsets, arrays, strict=False)
    ]
    return buffer, views


def broadcast_bytes(content: bytes | None) -> bytes:
    """Return process 0's bytes on every process; the others pass None.

    For messages of up to a few megabytes. There is no timeout, and waiting processes handle signals.
    """
    if jax.process_count() == 1:
        assert content is not None
        return content
    key = f"mrcnn_jax/{next(_message_ids)}"
    if is_main():
        assert content is not None
        key_value_store().key_value_set_bytes(key, content)
        return content
    return wait_for_key(key)


def gather_bytes(content: bytes) -> list[bytes]:
    """Return the bytes of every process, in process order, on every process. Sizes may differ."""
    count = jax.process_count()
    if count == 1:
        return [content]
    size_bytes = np.frombuffer(np.int64(len(content)).tobytes(), np.uint8)
    sizes = np.ascontiguousarray(_run_collective(multihost_utils.process_allgather, size_bytes))
    sizes = sizes.view(np.int64).reshape(count)
    gathered = np.zeros((count, sizes.max()), np.uint8)
    for begin, end, padded_size in _chunks(gathered.shape[1]):
        chunk = np.zeros(padded_size, np.uint8)
        part = np.frombuffer(content[begin:end], np.uint8)
        chunk[: len(part)] = part
        gathered[:, begin:end] = _run_collective(multihost_utils.process_allgather, chunk)[:, : end - begin]
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]


def run_on_main(function: Callable[[], bytes]) -> bytes:
    """Call `function` on process 0 and return its result on every process.

    If it raises one of `USER_ERRORS`, every process raises that type of error with the same message.
    """
    if is_main():
        try:
            content = function()
        except USER_ERRORS as error:
            kind = next(kind for kind in USER_ERRORS if isinstance(error, kind))
            broadcast_bytes(b"-" + json.dumps([kind.__name__, str(error)]).encode())
            raise _mark_on_all_processes(error) from None
        broadcast_bytes(b"+" + content)
        return content
    answer = broadcast_bytes(None)
    if answer[:1] == b"+":
        return answer[1:]
    name, text = json.loads(answer[1:])
    raise _mark_on_all_processes({kind.__name__: kind for kind in USER_ERRORS}[name](text))


def check_same(values: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError on every process unless all of them pass equal `values`.

    values: JSON values by name.
    what: noun for the message, such as "configuration".

    There is no timeout, and waiting processes handle signals.
    """
    if jax.process_count() == 1:
        return
    key = f"mrcnn_jax/{next(_message_ids)}"
    encoded = {name: json.dumps(value) for name, value in values.items()}
    key_value_store().key_value_set_bytes(
        f"{key}/{jax.process_index()}", json.dumps([socket.gethostname(), encoded]).encode()
    )

    def compare() -> bytes:
        gathered = [json.loads(wait_for_key(f"{key}/{index}")) for index in range(jax.process_count())]
        if differences := find_differences(gathered):
            raise ConfigError(
                f"the processes do not have the same {what}: {format_list(differences, _MAX_LISTED)}. Start all of them"
                " with the same command, the same version of the program and identical copies of the data"
            )
        return b""

    run_on_main(compare)


def find_differences(processes: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Describe each value that differs from process 0's.

    processes: for each process its host name, and its JSON-encoded values by name.
    """
    (main_host, expected), *others = processes
    return [
        f"{name} is {format_value(values.get(name, _ABSENT))} in process {index} ({host}) and"
        f" {format_value(expected.get(name, _ABSENT))} in process 0 ({main_host})"
        for index, (host, values) in enumerate(others, 1)
        for name in {**expected, **values}
        if values.get(name) != expected.get(name)
    ]


def enable_preemption_sync() -> None:
    """Let JAX handle SIGTERM and preemption notices, for `multihost_utils.reached_preemption_sync_point`.

    JAX's signal handler replaces Python's. Does nothing with one process, or when called again.
    """
    if jax.process_count() > 1 and global_state().preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        global_state().initialize_preemption_sync_manager()


def gather_small(content: bytes) -> list[bytes]:
    """`gather_bytes` through the key-value store, which works with different numbers of devices."""
    message_id = next(_message_ids)
    key_value_store().key_value_set_bytes(f"mrcnn_jax/{message_id}/{jax.process_index()}", content)
    return [wait_for_key(f"mrcnn_jax/{message_id}/{index}") for index in range(jax.process_count())]


def _mark_on_all_processes(error: Exception) -> Exception:
    error.on_all_processes = True  # type: ignore[attr-defined]  # see `mrcnn_jax.errors`
    return error


def key_value_store() -> Any:
    """The client of JAX's coordination service: a private API of JAX that Orbax uses, too."""
    return global_state().client


def global_state() -> Any:
    """JAX's private state of the connection to the other processes."""
    from jax._src import distributed

    return distributed.global_state


def wait_for_key(key: str) -> bytes:
    """Return the value of `key` in the key-value store as soon as it exists."""
    while True:
        try:
            return bytes(key_value_store().blocking_key_value_get_bytes(key, _POLL_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _chunks(size: int) -> Iterator[tuple[int, int, int]]:
    """Begin and end of each chunk of `size` bytes, and the power of two that the chunk is padded to."""
    for begin in range(0, size, _MAX_CHUNK):
        length = min(_MAX_CHUNK, size - begin)
        yield begin, begin + length, max(_MIN_CHUNK, 1 << (length - 1).bit_length())


def _run_collective(collective: Callable[[np.ndarray], Any], content: np.ndarray) -> np.ndarray:
    """Apply a collective to bytes, viewed as uint32: sums of them are exact, and every kind of device supports them."""
    with jax.transfer_guard("allow"):
        result = np.asarray(collective(content.view(np.uint32)))
    return np.ascontiguousarray(result).view(np.uint8)
