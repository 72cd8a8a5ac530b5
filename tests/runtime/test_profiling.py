"""`--profile`: recorded steps, content of a profile, unchanged results."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import Interrupted
from mrcnn_jax.evaluation.evaluate import evaluate_model
from mrcnn_jax.runtime import profiling
from mrcnn_jax.runtime.profiling import NUM_STEPS, StepProfiler
from mrcnn_jax.training.logs.metrics_log import MetricsLog
from mrcnn_jax.training.train import train

pytestmark = pytest.mark.medium


def only_trace(folder) -> bytes:
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    return path.read_bytes()


def events(content: bytes, *names: str):
    """(name, step number) of the events with these names, in order of start time."""
    lines = [line for plane in ProfileData.from_serialized_xspace(content).planes for line in plane.lines]
    selected = [event for line in lines for event in line.events if event.name in names]
    return [(event.name, dict(event.stats).get("step_num")) for event in sorted(selected, key=lambda e: e.start_ns)]


def loop(profile, shapes, within=lambda number: None):
    """Run one step per shape, which compiles if the shape is new; call `within` inside of each step."""
    program = jax.jit(lambda x: jnp.sin(x).sum())
    with profile:
        for number, shape in enumerate(shapes, start=1):
            profile.begin(number)
            results = program(np.ones(shape))
            within(number)
            profile.end(results)


def test_steps_after_the_compilation_are_recorded(tmp_path, caplog):
    caplog.set_level("INFO", "mrcnn_jax")
    loop(StepProfiler(tmp_path / "a b", "count"), [1, 2, 2] + [2] * NUM_STEPS + [2])
    assert events(only_trace(tmp_path / "a b"), "count") == [("count", 4 + i) for i in range(NUM_STEPS)]
    assert f"wrote a profile of {NUM_STEPS} steps of count to {tmp_path}/a b" in caplog.text
    assert f"tensorboard --logdir='{tmp_path}/a b'" in caplog.text


def test_loop_with_fewer_steps(tmp_path):
    loop(StepProfiler(tmp_path, "count"), [1, 1, 1, 1])
    assert events(only_trace(tmp_path), "count") == [("count", 3), ("count", 4)]


def test_loop_without_recorded_steps(tmp_path, caplog):
    caplog.set_level("INFO", "mrcnn_jax")
    loop(StepProfiler(tmp_path, "count"), [1, 1])
    assert not list(tmp_path.iterdir())
    assert "no profile of count" in caplog.text


def test_an_error_closes_the_recording(tmp_path):
    def fail(number):
        if number == 4:
            raise RuntimeError("in the middle")

    for folder in (tmp_path / "first", tmp_path / "second"):  # JAX allows one recording at a time
        with pytest.raises(RuntimeError, match="in the middle"):
            loop(StepProfiler(folder, "count"), [1, 1, 1, 1, 1], within=fail)
        assert events(only_trace(folder), "count") == [("count", 3), ("count", 4)]


def test_stop(tmp_path):
    with StepProfiler(tmp_path, "count") as profile:
        for number in range(1, 10):
            profile.begin(number)
            profile.end(())
            if number == 4:
                profile.stop()
    assert events(only_trace(tmp_path), "count") == [("count", number) for number in (2, 3, 4)]


def test_only_the_main_process_records(tmp_path, monkeypatch):
    loop(profiling.profile_steps(tmp_path / "main", "count", recorded=True), [1, 1, 1, 1])
    loop(profiling.profile_steps(tmp_path / "not asked", "count", recorded=False), [1, 1, 1, 1])
    monkeypatch.setattr(collectives, "is_main", lambda: False)
    loop(profiling.profile_steps(tmp_path / "other", "count", recorded=True), [1, 1, 1, 1])
    assert [folder.name for folder in tmp_path.iterdir()] == ["main"]


def test_profiled_training_gives_the_same_state(finished_run, tmp_path):
    state = train(finished_run.config, tmp_path / "run", profile=True)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(finished_run.state))
    content = only_trace(tmp_path / "run" / "profile")
    assert events(content, "train") == [("train", step) for step in range(2, 7)]  # compiled already
    assert len(events(content, profiling.INPUT_EVENT)) == len(events(content, "metrics")) == NUM_STEPS
    for part in ("backbone", "fpn", "rpn_head", "box_head", "mask_head"):  # names of modules
        assert f"/{part}/".encode() in content, part
    for part in ("normalize", "proposals", "targets", "roi_align", "losses", "optimizer"):  # scopes
        assert any(f"{part}{end}".encode() in content for end in "/)"), part
    assert not (tmp_path / "run" / "evaluation" / "profile").exists()
    assert not list(finished_run.workdir.rglob("profile"))  # without profile=True


def test_signal_closes_the_recording_and_the_run_resumes(finished_run, tmp_path, monkeypatch):
    log_step = MetricsLog.step

    def step(self, number, metrics):
        log_step(self, number, metrics)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "step", step)
        with pytest.raises(Interrupted, match="saved at step 5"):
            train(finished_run.config, tmp_path / "run", profile=True)
    assert events(only_trace(tmp_path / "run" / "profile"), "train") == [("train", step) for step in (2, 3, 4, 5)]
    state = train(finished_run.config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(finished_run.state))


def test_profiled_evaluation(finished_run, tmp_path):
    """With four times the images of the run, so that there are enough batches of the compiled size."""
    config, variables = load_variables(finished_run.workdir)
    data = dataclasses.replace(
        config.data,
        root=str(tmp_path / "shapes"),
        cache_dir=str(tmp_path / "cache"),
        shapes=dataclasses.replace(config.data.shapes, train_images=1, eval_images=16),
    )
    config = dataclasses.replace(config, data=data)
    evaluate_model(config, variables, tmp_path, profile=True)
    content = only_trace(tmp_path / "evaluation" / "profile")
    assert events(content, "evaluate") == [("evaluate", number) for number in (2, 3, 4)]
    assert events(content, "finish")
    assert b"detections/" in content
