"""Worker processes of the loader: how they begin, how they end, and what is said when one is lost."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from multiprocessing import connection

import cv2

from mrcnn_jax.data.errors import DataError

_ELSE = "data.workers=0 reads in threads of one process"
_ADVICE = {
    -signal.SIGKILL: "killed from outside, as the system does with what takes too much memory: use fewer data.workers"
    " (0 reads in threads of one process), a smaller train.batch_size, or give the job more memory",
    -signal.SIGBUS: "it found no room in shared memory, through which batches travel: enlarge /dev/shm (docker run"
    " --shm-size=2g) or use fewer data.workers",
    -signal.SIGSEGV: f"it crashed inside a library; {_ELSE}",
    1: "it could not start or was interrupted; its own words are above. A script that trains must do so under"
    ' `if __name__ == "__main__":`',
}


def start(index: int, count: int) -> None:
    """Runs first in worker `index` of `count`."""
    cv2.setNumThreads(1)  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def lost(error: Exception, worker: int) -> DataError:
    """What to say when worker process `worker` does not go on, in place of `error`, which grain raised."""
    found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if found is None:
        return DataError(f"worker process {worker} of the data loader failed: {type(error).__name__}: {error}")
    code = int(found[1])
    return DataError(f"worker process {worker} of the data loader ended, exit code {code}: {_ADVICE.get(code, _ELSE)}")


def _end_with_parent() -> None:
    """A main process that is killed cannot end its workers, which would wait for ever: they watch it themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
