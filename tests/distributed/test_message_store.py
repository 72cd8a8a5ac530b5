"""The message store of process 0, and its access from other processes: here from threads."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import time
from multiprocessing.connection import Connection

import pytest

from mrcnn_jax.distributed.message_store import MessageStore, RemoteStore, own_address
from mrcnn_jax.errors import ProcessLostError


@pytest.fixture
def store() -> MessageStore:
    return MessageStore()


@pytest.fixture
def remote(store) -> RemoteStore:
    return RemoteStore("localhost", *store.serve(backlog=2))


def test_first_message_of_a_key_stays(store, remote):
    remote.put("a", (1, "text"))
    store.put("a", 2)
    assert store.wait(["a"]) == remote.wait(["a"]) == {"a": (1, "text")}
    store.remove(["a"])
    assert remote.wait(["a"], timeout=0) == {}


def test_waiting(store, remote):
    threading.Timer(0.2, store.put, ("b", b"\0" * 1_000_000)).start()
    store.put("a", None)
    assert remote.wait(["a", "b"], timeout=0.01) == {"a": None}
    assert remote.get(["b", "a"]) == [b"\0" * 1_000_000, None]


def test_process_that_has_ended():
    with socket.create_server(("localhost", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ProcessLostError, match=rf"process 0 does not answer at localhost:{port} \("):
        RemoteStore("localhost", port, "token").put("a", 1)


class Unpickled:
    """Sets `called` when it is unpickled."""

    called = False

    def __reduce__(self):
        return setattr, (Unpickled, "called", True)


def test_messages_without_the_token_are_not_unpickled(store):
    port, token = store.serve(backlog=1)
    for wrong in (b"x" * len(token), b"", b"x" * 1_000_000):
        answers = []
        with (
            contextlib.suppress(EOFError, OSError),  # the connection is closed
            Connection(socket.create_connection(("localhost", port)).detach()) as pipe,
        ):
            pipe.send_bytes(wrong)
            pipe.send_bytes(pickle.dumps(Unpickled()))
            answers.append(pipe.recv())
        assert not answers
    time.sleep(0.1)
    assert not Unpickled.called
    RemoteStore("localhost", port, token).put("a", 1)
    assert store.get(["a"]) == [1]


def test_own_address_can_be_reached(store):
    RemoteStore(own_address(), *store.serve(backlog=1)).put("a", 1)
    assert store.get(["a"]) == [1]
