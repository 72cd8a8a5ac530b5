"""SIGTERM and Ctrl-C in `SignalHandler`, and in the training loop with a linear model. Runs: `test_stops.py`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from support import linear

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.config import TrainConfig
from mrcnn_jax.distributed import collectives
from mrcnn_jax.distributed.message_store import MessageStore
from mrcnn_jax.errors import Interrupted
from mrcnn_jax.training import interruption
from mrcnn_jax.training.interruption import SignalHandler
from mrcnn_jax.training.step import TrainState

pytestmark = pytest.mark.medium

SIGNALS = pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


def send(number: int) -> None:
    """Send a signal to this process; Python runs the handler before this returns."""
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    """Install Python's default handlers, and check that the test has restored them."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert left == usual


def end(body: Callable[[SignalHandler], None]) -> Interrupted:
    """Return the exception that ends `body`."""

    def run() -> None:
        with SignalHandler() as signals:
            body(signals)

    with pytest.raises(Interrupted) as stopped:
        run()
    return stopped.value


@SIGNALS
def test_signal_raises_at_once_unless_postponed(number, status):
    def prepare(signals):
        send(number)
        raise AssertionError("went on")

    stopped = end(prepare)
    assert stopped.exit_status == status
    assert "the same command continues from the last checkpoint" in str(stopped)


@SIGNALS
def test_postponed_signal_waits_for_should_stop(number, status, capfd):
    said = []

    def train(signals):
        with signals.postponed():
            assert not signals.should_stop()
            send(number)
            said.append(capfd.readouterr().err)
            assert signals.should_stop()
            raise signals.error(7)

    stopped = end(train)
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert stopped.exit_status == status
    assert str(stopped) == f"{name}: saved at step 7; the same command continues"
    assert said[0].startswith(f"{name}: finishing this step, then saving (")
    assert said[0].count("\n") == 1


@SIGNALS
def test_unhandled_postponed_signal_is_raised_on_exit(number, status):
    done = []

    def train(signals):
        with signals.postponed():
            with signals.postponed():  # as an evaluation during training does
                send(number)
            done.append("the rest")
        done.append("too much")

    assert end(train).exit_status == status
    assert done == ["the rest"]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_only_a_second_ctrl_c_raises_at_once(first):
    done = []

    def train(signals):
        with signals.postponed():
            send(first)
            send(signal.SIGTERM)
            done.append("went on")
            send(signal.SIGINT)
            done.append("too much")

    stopped = end(train)
    assert done == ["went on"]
    assert stopped.exit_status == 130
    assert "saved" not in str(stopped)


@pytest.mark.parametrize("then", ["train", "nothing"])
def test_signal_in_a_destructor_is_raised_later(then, monkeypatch):
    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: swallowed.append(unraisable.exc_type))

    class Array:
        def __del__(self):
            send(signal.SIGTERM)

    def run(signals):
        Array()
        assert swallowed == [Interrupted]
        if then == "train":
            with signals.postponed():
                raise AssertionError("went on")

    assert end(run).exit_status == 143


def test_other_threads_do_not_handle_signals():
    reached = []

    def run() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with SignalHandler() as signals, signals.postponed():
            reached.append(signals.should_stop())
            assert signal.getsignal(signal.SIGTERM) is before
        reached.append("end")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert reached == [False, "end"]


def test_an_ignored_signal_stays_ignored(capfd):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup train.py &
    try:
        with SignalHandler() as signals:
            send(signal.SIGINT)
            with signals.postponed():
                send(signal.SIGINT)
                assert not signals.should_stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == ""


@pytest.fixture
def store(monkeypatch) -> MessageStore:
    """The message store of two processes, of which this one is the first; the tests write the other's messages."""
    store = MessageStore()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(collectives, "connect", lambda: store)
    monkeypatch.setattr(interruption, "_agreement_ids", itertools.count())
    return store


@SIGNALS
def test_several_processes_stop_at_the_first_call_that_none_has_made(number, status, store, capfd):
    asked = []

    def train(signals):
        with signals.postponed():
            asked.append(signals.should_stop())
            send(number)
            assert store.get(["stop/0", "stop/0/0"]) == [None, 1]
            store.put("stop/0/1", 3)
            while not asked[-1]:
                asked.append(signals.should_stop())
            assert signals.should_stop()
            raise signals.error(4)

    stopped = end(train)
    assert stopped.exit_status == status  # that of Ctrl-C only in the process that received it
    assert stopped.on_all_processes
    assert asked == [False, False, False, True]
    assert capfd.readouterr().err.count("finishing this step") == 1


def test_signal_to_another_process(store, capfd):
    def train(signals):
        with signals.postponed():
            store.put("stop/0", None)
            store.put("stop/0/1", 0)
            assert store.get(["stop/0/0"]) == [0]
            assert signals.should_stop()
            raise signals.error(0)

    assert end(train).exit_status == 143
    assert capfd.readouterr().err.count("SIGTERM: finishing this step") == 1


def test_signal_right_before_the_loop_stops_all_processes(store, monkeypatch):
    class Array:
        def __del__(self):
            send(signal.SIGTERM)

    def train(signals):
        Array()  # Python drops the exception
        with signals.postponed():
            assert store.get(["stop/0/0"]) == [0]
            store.put("stop/0/1", 1)
            assert [signals.should_stop() for _ in range(2)] == [False, True]
            raise signals.error(0)

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    end(train)


def test_calls_are_counted_across_postponed_blocks(store):
    def second(signals):
        with signals.postponed():
            store.put("stop/1", None)
            store.put("stop/1/1", 7)
            assert store.get(["stop/1/0"]) == [0]  # counted for each handler
            assert [signals.should_stop() for _ in range(8)] == [False] * 7 + [True]
            raise signals.error()

    with SignalHandler() as signals:
        for _ in range(2):
            with signals.postponed():
                signals.should_stop()
        store.put("stop/0", None)
        assert store.get(["stop/0/0"]) == [4]
        store.put("stop/0/1", 9)
    end(second)


class Calls:
    """Records the calls of the loop, and sends a signal after the first call `when`."""

    def __init__(self, when: str = "", number: int = signal.SIGTERM):
        self.when, self.number, self.recorded = when, number, []

    def __call__(self, what: str) -> None:
        self.recorded.append(what)
        if what == self.when:
            self.when = ""
            send(self.number)


def fit(workdir, calls: Calls, *, steps=8, every=3) -> TrainState:
    """Train the linear model, with an evaluation after step 5."""
    config = TrainConfig(steps=steps, batch_size=4, checkpoint_every=every)

    def train_step(state, batch, key):
        after = linear.compiled_step()(state, batch, key)
        calls("step")
        return after

    class Saving(Checkpointer):
        def save(self, step, state):
            super().save(step, state)
            calls(f"save {step}")

    def evaluate(step, state):
        for image in range(4):
            calls(f"image {image}")
            if signals.should_stop():
                raise signals.error()
        return {}

    sink = MagicMock()
    sink.advance = lambda step: calls(f"log {step}")
    train_step.traces = 0
    evaluator = SimpleNamespace(
        is_due=lambda step: step == 5, evaluate=evaluate, overlays=lambda _: {}, patience_exhausted=lambda: False
    )
    with SignalHandler() as signals:
        return linear.fit(
            workdir,
            config,
            sink,
            train_step=train_step,
            checkpointer=Saving,
            signals=signals,
            evaluator=evaluator,
        )


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TrainState:
    """The final state of an uninterrupted run."""
    return fit(tmp_path_factory.mktemp("whole"), Calls())


# The call after which the signal comes, the message, and the saved steps. One step is queued ahead.
@SIGNALS
@pytest.mark.parametrize(
    ("when", "message", "saved"),
    [
        ("step", "saved at step 1", [1]),
        ("log 3", "saved at step 4", [3, 4]),
        ("save 3", "saved at step 4", [3, 4]),
        ("image 1", "stopped", [3, 5]),
        ("save 8", "stopped", [3, 5, 6, 8]),
    ],
)
def test_run_resumes_after_a_signal(when, message, saved, number, status, tmp_path, whole):
    with pytest.raises(Interrupted, match=rf": {message}; the same command") as stopped:
        fit(tmp_path / "parts", Calls(when, number))
    assert stopped.value.exit_status == status
    assert saved_steps(tmp_path / "parts") == saved
    calls = Calls()
    parts = fit(tmp_path / "parts", calls)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert calls.recorded.count("step") == 8 - saved[-1]
    assert [call for call in calls.recorded if call.startswith("image")] == (
        [f"image {image}" for image in range(4)] if saved[-1] <= 5 else []
    )


def test_only_the_queued_step_is_done_after_a_signal(tmp_path):
    calls = Calls("log 4")
    with pytest.raises(Interrupted):
        fit(tmp_path, calls, every=100)
    made = calls.recorded[calls.recorded.index("log 4") + 1 :]
    assert made == ["log 5", "save 5"]
