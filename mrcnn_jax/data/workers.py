"""Worker processes of the data loader: initialization, transfer of batches, and error messages."""

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

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NO_WORKERS_ADVICE = "try data.workers=0, which loads in threads of one process"
_ADVICE = {  # by exit code
    -signal.SIGKILL: "it was killed, probably because memory ran out: use fewer data.workers (0 loads in threads of one"
    " process) or a smaller train.batch_size, or give the job more memory",
    -signal.SIGBUS: "shared memory, through which batches are sent, is full: enlarge /dev/shm (docker run"
    " --shm-size=2g) or use fewer data.workers",
    -signal.SIGSEGV: f"it crashed in a library: {_NO_WORKERS_ADVICE}",
    1: "it could not start or was interrupted, see its output above; a script that trains must call the training under"
    ' `if __name__ == "__main__":`',
}


class WorkerInit:
    """Initializes a worker process.

    A worker ignores SIGINT and SIGTERM, which Ctrl-C and Slurm send to workers too: the main process needs further
    batches to finish its last step. It ends when the main process ends it or exits.
    """

    def __call__(self, index: int, count: int) -> None:
        cv2.setNumThreads(1)  # the workers share the cores already
        for number in _IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=_exit_with_parent, daemon=True).start()

    def __reduce__(self) -> tuple[type[WorkerInit], tuple[()]]:
        # grain pickles this in the thread that then starts the process. A process inherits the blocked signals of that
        # thread, so it is protected from its start, seconds before it has imported its modules.
        if threading.current_thread() is not threading.main_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
        return WorkerInit, ()


def pack(batch: Batch) -> Batch:
    """Remove the masks of instance slots that no image uses, a third of the bytes of a batch, before sending it.

    Allocating pages of shared memory takes longer than copying: sending an image adds half of its loading time.
    """
    truth = batch.ground_truth
    used = int(np.asarray(truth.valid).sum(axis=1).max(initial=0))  # valid instances are in the first slots
    return batch._replace(ground_truth=truth._replace(masks=np.ascontiguousarray(truth.masks[:, :used])))


def unpack(batch: Batch) -> Batch:
    """Invert `pack`, and copy the batch from shared memory to memory of this process.

    Shared memory is freed with the array that uses it. An array kept alive by an exception until the process exits
    would cause a warning of a leak by Python's resource tracker.
    """
    truth = batch.ground_truth
    masks = np.zeros((*truth.valid.shape, *truth.masks.shape[2:]), np.uint8)
    masks[:, : truth.masks.shape[1]] = truth.masks
    truth = GroundTruth(*map(np.array, truth._replace(masks=np.empty(0))))._replace(masks=masks)
    return Batch._make([*map(np.array, batch[:-1]), truth])


def worker_error(error: Exception, worker: int) -> DataError:
    """Return the error for a worker process that failed, in place of `error`, which grain raised."""
    match = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if match is None:
        return DataError(f"worker process {worker} of the data loader failed: {type(error).__name__}: {error}")
    code = int(match[1])
    advice = _ADVICE.get(code, _NO_WORKERS_ADVICE)
    return DataError(f"worker process {worker} of the data loader ended with exit code {code}: {advice}")


def _exit_with_parent() -> None:
    """Exit when the main process ends; if it is killed, it cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
