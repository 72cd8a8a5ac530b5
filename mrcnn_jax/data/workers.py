"""Worker processes of the loader: how they begin, what they send, how they end, and what is said when one is lost."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from multiprocessing import connection

import cv2
import numpy as np

from mrcnn_jax.errors import DataError
from mrcnn_jax.structures import Batch, GroundTruth

_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM)
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


class Start:
    """Runs first in each worker process.

    Ctrl-C at a terminal, and SIGTERM from Slurm, reach the workers too; without them a run could not do its last step.
    So they ignore both, and end when the main process says so or is gone.
    """

    def __call__(self, index: int, count: int) -> None:
        cv2.setNumThreads(1)  # the workers share the cores already
        for number in _LEFT_TO_MAIN:
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def __reduce__(self) -> tuple[type[Start], tuple[()]]:
        # grain pickles this in the thread that starts the process next. A process inherits what is blocked there: so it
        # is safe from its first moment on, and not only when it has imported all it needs, seconds later.
        if threading.current_thread() is not threading.main_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
        return Start, ()


def pack(batch: Batch) -> Batch:
    """A batch as it travels: without masks for the slots that no image uses, which are a third of its bytes.

    Every page of shared memory costs more than the copy: of an image's time, traveling takes half as much again.
    """
    truth = batch.ground_truth
    used = int(np.asarray(truth.valid).sum(axis=1).max(initial=0))  # instances come first
    return batch._replace(ground_truth=truth._replace(masks=np.ascontiguousarray(truth.masks[:, :used])))


def unpack(batch: Batch) -> Batch:
    """A batch as it was before `pack`, in memory of this process alone.

    Shared memory is freed with the array that uses it. One that an exception keeps until the process ends would be
    left to Python's resource tracker, which warns of a leak.
    """
    truth = batch.ground_truth
    masks = np.zeros((*truth.valid.shape, *truth.masks.shape[2:]), np.uint8)
    masks[:, : truth.masks.shape[1]] = truth.masks
    truth = GroundTruth(*map(np.array, truth._replace(masks=np.empty(0))))._replace(masks=masks)
    return Batch._make([*map(np.array, batch[:-1]), truth])


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
