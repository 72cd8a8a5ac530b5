"""Messages between the processes of a run, through a store in process 0.

JAX's public functions move arrays in collectives: every process must take part at the same time, and one that waits
occupies its devices, handles no signals and never learns that another one has failed. The key-value store of JAX's
coordination service could do this, but is not public. So process 0 serves a small store, to which the others connect.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from mrcnn_jax.errors import ProcessLostError

_MAX_WAIT = 60.0  # seconds that a request may take: firewalls drop connections that are idle for longer


class MessageStore:
    """Messages (picklable objects) by key, in process 0. Any thread or signal handler may call it."""

    def __init__(self) -> None:
        self._messages: dict[str, Any] = {}
        self._changed = threading.Condition(threading.RLock())  # a signal handler may interrupt a call

    def put(self, key: str, message: Any) -> None:
        """Store a message. Does nothing if the key has one."""
        with self._changed:
            self._messages.setdefault(key, message)
            self._changed.notify_all()

    def wait(self, keys: Sequence[str], timeout: float = _MAX_WAIT) -> dict[str, Any]:
        """Return the messages of `keys` as soon as all exist, or those that exist after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: all(key in self._messages for key in keys), timeout)
            return {key: self._messages[key] for key in keys if key in self._messages}

    def get(self, keys: Sequence[str]) -> list[Any]:
        """Return the messages of `keys` as soon as all exist. There is no timeout, and signals are handled."""
        while len(messages := self.wait(keys)) < len(keys):
            pass
        return list(messages.values())

    def remove(self, keys: Sequence[str]) -> None:
        """Forget the messages of `keys`, which may be large."""
        with self._changed:
            for key in keys:
                del self._messages[key]

    def serve(self, backlog: int) -> tuple[int, str]:
        """Let other processes connect, `backlog` at once. Returns the port and the token for `RemoteStore`."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, backlog=backlog, dualstack_ipv6=dual)
        token = secrets.token_hex(16)
        threading.Thread(target=self._accept, args=(server, token.encode()), daemon=True).start()
        return server.getsockname()[1], token

    def _accept(self, server: socket.socket, token: bytes) -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=self._answer, args=(connection, token), daemon=True).start()

    def _answer(self, connection: socket.socket, token: bytes) -> None:
        """Answer one request. The token comes first: what other programs send is never unpickled."""
        with (
            contextlib.suppress(OSError, EOFError),  # the other process has ended
            Connection(connection.detach()) as pipe,
        ):
            if hmac.compare_digest(pipe.recv_bytes(len(token)), token):
                method, *arguments = pipe.recv()
                pipe.send(getattr(self, method)(*arguments))


class RemoteStore(MessageStore):
    """Access of another process to the store. Raises ProcessLostError if process 0 does not answer."""

    def __init__(self, host: str, port: int, token: str):
        self._address, self._token = (host, port), token.encode()

    def put(self, key: str, message: Any) -> None:
        self._ask("put", key, message)

    def wait(self, keys: Sequence[str], timeout: float = _MAX_WAIT) -> dict[str, Any]:
        messages: dict[str, Any] = self._ask("wait", keys, timeout)
        return messages

    def _ask(self, *request: Any) -> Any:
        """Send a request over a connection of its own, so that it may be sent at any time."""
        try:
            with Connection(socket.create_connection(self._address).detach()) as pipe:
                pipe.send_bytes(self._token)
                pipe.send(request)
                return pipe.recv()
        except (OSError, EOFError) as error:
            host, port = self._address
            raise ProcessLostError(f"process 0 does not answer at {host}:{port} ({error or 'it has ended'})") from error


def own_address() -> str:
    """Return the address of this host in its network."""
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; connecting a datagram socket sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
