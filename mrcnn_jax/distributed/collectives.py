"""Collective operations of several processes on host data.

The arrays of a training state are sent with JAX collectives over all devices. All else is sent through a message store:
waiting for a message neither occupies the devices nor blocks signals, and has no timeout.
Every process must make the same calls in the same order. With one process, each function is the identity.
"""

from __future__ import annotations

import itertools
import json
import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mrcnn_jax.distributed.message_store import MessageStore, RemoteStore, own_address
from mrcnn_jax.errors import USER_ERRORS, ConfigError, format_list, format_value

T = TypeVar("T")
_MAX_CHUNK = 1 << 26  # bytes of the largest collective
_ADDRESS_BYTES = 512  # of the message store
_MAX_LISTED = 6  # differences between processes that an error message lists
_ABSENT = "absent"  # shown for a value that a process does not have

_message_ids = itertools.count()  # equal in all processes, because all make the same calls
_store: MessageStore | None = None


def is_main() -> bool:
    """True on process 0, which writes files and prints."""
    return jax.process_index() == 0


def connect(host: str | None = None) -> MessageStore:
    """Return the message store, to which the first call connects all processes.

    host: name or address of the host of process 0, if it is known.
    """
    global _store
    if _store is not None:
        return _store
    address = ""
    if is_main():
        _store = MessageStore()
        address = json.dumps([host or own_address(), *_store.serve(jax.process_count())])
    content = np.frombuffer(address.encode().ljust(_ADDRESS_BYTES), np.uint8)
    address = _broadcast_buffer(content).tobytes().decode()
    if _store is None:
        _store = RemoteStore(*json.loads(address))
        _store.wait([])  # raises ProcessLostError if the address cannot be reached
    return _store


def broadcast(tree: Any) -> Any:
    """Return process 0's pytree of NumPy arrays on every process, bit for bit.

    The other processes pass arrays of the same shapes and dtypes. The arrays are sent as one buffer, in a few large
    collectives. With one process, returns `tree` itself.
    """
    if jax.process_count() == 1:
        return tree
    # Process 0 may arrive much later. Unlike a collective, this wait has no timeout and lets signals through.
    broadcast_object(None)
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    buffer = _broadcast_buffer(np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8))
    parts = np.split(buffer, np.cumsum([array.nbytes for array in arrays])[:-1])
    views = [part.copy().view(array.dtype).reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]
    return jax.tree.unflatten(structure, views)


def _broadcast_buffer(buffer: np.ndarray) -> np.ndarray:
    """Return process 0's bytes on every process. The others pass as many."""
    # As uint32: JAX adds zeros to process 0's array, which is exact for integers, and all devices support these.
    words = np.zeros(-(-len(buffer) // 4), np.uint32)
    words.view(np.uint8)[: len(buffer)] = buffer
    chunks = np.array_split(words, words.nbytes // _MAX_CHUNK + 1)
    with jax.transfer_guard("allow"):
        received = [np.asarray(multihost_utils.broadcast_one_to_all(chunk)) for chunk in chunks]
    return np.concatenate(received).view(np.uint8)[: len(buffer)]


def broadcast_object(value: Any) -> Any:
    """Return process 0's picklable object, of up to a few megabytes, on every process; the others pass anything."""
    if jax.process_count() == 1:
        return value
    key = f"broadcast/{next(_message_ids)}"
    if is_main():
        connect().put(key, pickle.dumps(value))  # now: the caller may change the value before the others have read it
        return value
    [content] = connect().get([key])
    return pickle.loads(content)


def gather(value: T) -> list[T]:
    """Return the picklable objects of every process, in process order, on process 0; an empty list on the others."""
    if jax.process_count() == 1:
        return [value]
    store, message_id = connect(), next(_message_ids)
    keys = [f"gather/{message_id}/{index}" for index in range(jax.process_count())]
    store.put(keys[jax.process_index()], value)
    if not is_main():
        return []
    gathered = store.get(keys)
    store.remove(keys)
    return gathered


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` on process 0 and return its result, a picklable object, on every process.

    If it raises one of `USER_ERRORS`, every process raises that type of error with the same message.
    """
    result: Any = None
    error: Any = None
    if is_main():
        try:
            result = function()
        except USER_ERRORS as raised:
            error = raised
    kind = next((kind for kind in USER_ERRORS if isinstance(error, kind)), None)
    result, kind, text = broadcast_object((result, kind, str(error)))
    if kind is not None:
        failure = error or kind(text)
        failure.on_all_processes = True  # see `mrcnn_jax.errors`
        raise failure
    return result


def check_same(values: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError on every process unless all of them pass equal `values`.

    values: JSON values by name.
    what: noun for the message, such as "configuration".

    There is no timeout, and waiting processes handle signals.
    """
    gathered = gather((socket.gethostname(), {name: json.dumps(value) for name, value in values.items()}))

    def compare() -> None:
        if differences := find_differences(gathered):
            raise ConfigError(
                f"the processes do not have the same {what}: {format_list(differences, _MAX_LISTED)}. Start all of them"
                " with the same command, the same version of the program and identical copies of the data"
            )

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
