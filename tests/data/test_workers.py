"""Tests of failing worker processes: a helpful error soon, and no process left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrcnn_jax.config import Config
from mrcnn_jax.data import Batches, load_split, train_batches, workers
from mrcnn_jax.errors import DataError
from mrcnn_jax.structures import Batch, GroundTruth

pytestmark = pytest.mark.medium

SOON = 30.0  # seconds; a tenth of it on an idle machine

TRAINS = """
import multiprocessing, sys
from pathlib import Path
from mrcnn_jax.config import Config, DataConfig, SplitConfig, TrainConfig
from mrcnn_jax.data import load_split, train_batches

if __name__ == "__main__":
    split = SplitConfig("coco.json", "images")
    data = DataConfig(root=sys.argv[1], train=split, cache_dir=sys.argv[1] + "/cache", workers=1, buckets=((64, 64),))
    config = Config(data=data, train=TrainConfig(batch_size=2))
    with train_batches(load_split(data, "train"), config) as batches:
        next(batches), next(batches)
        print("pids", *(process.pid for process in multiprocessing.active_children()), flush=True)
        for batch in batches:
            pass
"""


def begin(config: Config, count: int, reader: Any = None) -> Batches:
    """Training batches of worker processes; of another reader of records, if one is given."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=count))
    dataset = load_split(config.data, "train")
    return train_batches(dataset if reader is None else dataclasses.replace(dataset, reader=reader), config)


def fail(batches: Batches) -> str:
    """What is said at the end of the batches, and again when one asks again."""
    with pytest.raises(DataError) as first:
        for _ in itertools.islice(batches, 2000):  # they are endless
            pass
    with pytest.raises(DataError) as second:
        next(batches)
    assert second.value is first.value
    return str(first.value)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_worker_is_reported_within_seconds(shared_folder: Any, count: int) -> None:
    with begin(shared_folder.config(), count) as batches:
        next(batches)
        children = multiprocessing.active_children()
        assert len(children) == count
        pids = sorted(child.pid for child in children if child.pid is not None)
        start = time.monotonic()
        os.kill(pids[-1], signal.SIGKILL)
        message = fail(batches)
        assert time.monotonic() - start < SOON
    assert message.startswith("worker process ")
    assert "of the data loader ended with exit code -9: it was killed" in message
    assert "use fewer data.workers" in message
    assert not any(running(pid) for pid in pids)


@pytest.mark.parametrize("count", [0, 1])
def test_error_of_a_worker_keeps_its_message(shared_folder: Any, count: int) -> None:
    folder = shared_folder.root / "images"

    class Reader:  # local, so that it travels to the worker by value
        def __getitem__(self, row: int) -> Any:
            class OddError(Exception):  # one that no other process can make again from its arguments
                def __init__(self, first: str, second: str):
                    super().__init__(first + second)

            if row == 3:
                raise OddError("no such ", "luck")
            return (folder / f"{row}.png").read_bytes(), []

    with begin(shared_folder.config(), count, Reader()) as batches:
        message = fail(batches)
    assert message.startswith(f"{folder / '3.png'} (image id 97), step ")
    assert message.endswith(": OddError: no such luck")


@pytest.mark.parametrize("count", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_missing_records_stop_the_run(coco_folder: Any, count: int) -> None:
    batches = begin(coco_folder.config(), count)
    shutil.rmtree(coco_folder.root / "cache")
    with batches:
        assert "the prepared records were removed" in fail(batches)


@pytest.mark.parametrize(
    ("count", "opened"),
    [(0, False), (0, True), pytest.param(1, False, marks=pytest.mark.slow)],  # a worker opens them itself
)
def test_truncated_records_stop_the_run(coco_folder: Any, count: int, opened: bool) -> None:
    """It is no matter of single images, which would be empty slots from here to the end of the training."""
    dataset = load_split(coco_folder.config().data, "train")
    if opened:  # array_record keeps the file open, and says nothing of what is beyond its new end
        dataset.record(0)
    batches = begin(coco_folder.config(), count, dataset.reader)  # it would find a short file, and prepare it again
    (part,) = coco_folder.root.rglob("*.array_record*")
    os.truncate(part, 0)
    with batches:
        message = fail(batches)
    assert message.startswith(f"{part}: this file of prepared records is missing or truncated; start again")
    assert len(load_split(coco_folder.config().data, "train").record(0)[0]) > 0


def test_exit_code_of_a_worker_is_explained() -> None:
    grain = "Worker process was terminated unexpectedly with exit code {}. Search the logs above for the source."
    for code, words in {-7: "--shm-size", -9: "give the job more memory", 1: "__main__", 3: "data.workers=0"}.items():
        message = str(workers.worker_error(RuntimeError(grain.format(code)), 5))
        assert message.startswith(f"worker process 5 of the data loader ended with exit code {code}: ")
        assert words in message


def running(pid: int) -> bool:
    """Whether a process is there, and more than an entry that nobody has collected."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.fixture
def program(tmp_path: Path, coco_folder: Any) -> Any:
    """A program that reads batches for ever, and the process of its worker."""
    coco_folder.config()
    script = tmp_path / "trains.py"
    script.write_text(TRAINS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(coco_folder.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("pids"))
    pids = [int(pid) for pid in line.split()[1:]]
    yield process, pids
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a worker that stayed behind would hold the pipes open
    process.communicate()


def test_ctrl_c_ends_the_worker(program: Any) -> None:
    """Python forgets an interruption that meets a destructor, and this program does little else than destroy grain's
    arrays: then it takes another one, as it would at a terminal."""
    process, pids = program
    for _ in range(50):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes of the group
        try:
            _, errors = process.communicate(timeout=1)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "DataError" not in errors  # the worker did not mind
    assert not any(running(pid) for pid in pids)


def test_workers_ignore_signals_and_end_on_close(shared_folder: Any) -> None:
    """Slurm sends SIGTERM to every process of a job, and the main one still has a step to do and to save."""
    ready = threading.Event()
    signalled: dict[int, int] = {}

    def disturb() -> None:
        while not ready.wait(0.02):
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGTERM)
                    os.kill(child.pid, signal.SIGINT)
                    signalled[child.pid] = signalled.get(child.pid, 0) + 1

    thread = threading.Thread(target=disturb)
    with begin(shared_folder.config(), 2) as batches:
        thread.start()
        try:
            for _ in range(8):
                next(batches)
        finally:
            ready.set()
            thread.join()
        start = time.monotonic()
    assert time.monotonic() - start < SOON
    assert len(signalled) == 2
    assert min(signalled.values()) > 10  # from the first moment, long before they had imported anything
    assert not any(running(pid) for pid in signalled)


def test_worker_exits_when_the_main_process_is_killed(program: Any) -> None:
    process, pids = program
    process.kill()
    process.wait()
    start = time.monotonic()
    while any(running(pid) for pid in pids):
        assert time.monotonic() - start < SOON
        time.sleep(0.1)


def test_batches_hold_no_shared_memory(shared_folder: Any) -> None:
    """A process that ends with a batch at hand, as after a signal, would leave it to Python's resource tracker."""
    with begin(shared_folder.config(), 1) as batches:
        batch = next(batches)
    for array in (*batch[:-1], *batch.ground_truth):
        assert type(array) is np.ndarray
        assert array.base is None


@pytest.mark.parametrize("instances", [(0, 0), (3, 1), (2, 4)])
def test_pack_and_unpack_masks_of_unused_slots(instances: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    valid = np.arange(4) < np.array(instances)[:, None]
    masks = rng.integers(0, 2, (2, 4, 5, 5), np.uint8) * valid[..., None, None].astype(np.uint8)
    empty = np.zeros((2, 4, 0), np.float32)
    truth = GroundTruth(empty, empty, masks, empty, empty, valid)
    batch = Batch(np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 2), np.int32), np.arange(2), np.ones(2, bool), truth)
    packed = workers.pack(batch)
    assert packed.ground_truth.masks.shape == (2, max(instances), 5, 5)
    np.testing.assert_array_equal(workers.unpack(packed).ground_truth.masks, masks)
