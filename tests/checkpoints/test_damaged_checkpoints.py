"""Damaged checkpoints are detected, skipped and kept; they are never restored."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.checkpoint_states import assert_same, make_state

from mrcnn_jax.checkpoints.manager import Checkpointer, load_variables, save_best
from mrcnn_jax.checkpoints.storage import make_record, verify
from mrcnn_jax.checkpoints.workdir import prepare_workdir
from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError, DamagedCheckpointError
from mrcnn_jax.training.step import TrainState


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    prepare_workdir(workdir, Config())
    with Checkpointer(workdir, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step))
    return workdir


@pytest.fixture
def workdir(two_steps: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_steps, tmp_path / "run")


# When one of several concurrent reads fails, Orbax does not await the others. Their exceptions are reported during
# garbage collection, and tensorstore prints lines about them.
pytestmark = [pytest.mark.medium, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Keep those exceptions out of the tests of other files."""
    yield
    gc.collect()


def restore(workdir: Path) -> TrainState:
    with Checkpointer(workdir, keep=2) as checkpointer:
        return checkpointer.restore_latest(make_state(0))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def destroy(step: Path) -> None:
    """Flip a bit in every file of the parameters."""
    item = step / "params"
    for name, content in contents(item).items():
        (item / name).write_bytes(_flip_bits(content, random.Random(0), 1))


def is_state(state: TrainState, step: int) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), state, make_state(step))
    return all(jax.tree.leaves(same))


def _flip_bits(content: bytes, rng: random.Random, bits: int) -> bytes:
    changed = bytearray(content)
    for _ in range(bits):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


DAMAGES = (
    lambda content, rng: _flip_bits(content, rng, 1),
    lambda content, rng: _flip_bits(content, rng, 4),
    lambda content, rng: content[: rng.randrange(len(content))],
    lambda content, rng: bytes(len(content)),
    lambda content, rng: None,  # the file is gone
)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_any_damage_is_detected_or_harmless(workdir, seed, caplog):
    """With damage in each file of the latest checkpoint: the exact state of step 2, or that of step 1."""
    rng = random.Random(seed)
    step = workdir / "checkpoints" / "2"
    intact = contents(step)
    outcomes = {1: 0, 2: 0}
    for name, content in intact.items():
        caplog.clear()
        changed = rng.choice(DAMAGES)(content, rng)
        (step / name).unlink() if changed is None else (step / name).write_bytes(changed)
        _, variables = load_variables(workdir)
        assert any(np.array_equal(variables["params"]["head"]["kernel"], kernel(step)) for step in (1, 2))
        assert step.is_dir()  # loading changes no files
        caplog.clear()
        state = restore(workdir)
        outcomes[int(state.step)] += 1
        assert is_state(state, int(state.step)), name
        fell_back = int(state.step) == 1
        assert fell_back == ("checkpoints/2 is damaged" in caplog.text), name
        assert fell_back == ("the run resumes from step 1" in caplog.text), name
        if fell_back:
            assert not step.exists()
            assert contents(workdir / "corrupt" / "2").keys() == intact.keys() - ({name} if changed is None else set())
            shutil.rmtree(workdir / "corrupt" / "2")
        else:
            shutil.rmtree(step)
        for path, original in intact.items():
            (step / path).parent.mkdir(parents=True, exist_ok=True)
            (step / path).write_bytes(original)
    assert outcomes[1] >= 5  # arrays, their index, checksums
    assert outcomes[2] >= 1  # metadata of Orbax


def kernel(step: int) -> Any:
    return make_state(step).params["head"]["kernel"]


def test_wrong_values_have_a_wrong_checksum():
    """Also if the files can be read."""
    items = {"params": {"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.int32)}}
    recorded = make_record(items)["items"]["params"]
    verify(recorded, items["params"])
    for wrong in (
        {"a": np.arange(6, dtype=np.float32)[::-1], "b": np.zeros((), np.int32)},
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int32)},
        {"a": np.arange(6, dtype=np.float32).view(np.int32), "b": np.zeros((), np.int32)},
        {"a": np.arange(6, dtype=np.float32)},
    ):
        with pytest.raises(DamagedCheckpointError, match="wrong checksum of"):
            verify(recorded, wrong)
    negative = {**items["params"], "a": items["params"]["a"] * np.float32(-1) + 0}
    negative["a"][0] = -0.0
    with pytest.raises(DamagedCheckpointError, match="wrong checksum of a"):
        verify(make_record({"": {"a": negative["a"] + 0}})["items"][""], {"a": negative["a"]})


def test_damaged_step_is_saved_again_and_nothing_is_deleted(workdir):
    for name in ("2", "2-2"):
        destroy(workdir / "checkpoints" / "2")
        bad = contents(workdir / "checkpoints" / "2")
        with Checkpointer(workdir, keep=2) as checkpointer:
            assert int(checkpointer.restore_latest(make_state(0)).step) == 1
            checkpointer.save(2, make_state(2))
        assert contents(workdir / "corrupt" / name) == bad
        assert_same(restore(workdir), make_state(2))


def test_without_an_intact_checkpoint_nothing_is_moved_and_nothing_restarted(workdir):
    for step in ("1", "2"):
        destroy(workdir / "checkpoints" / step)
    before = contents(workdir)
    for use in (restore, load_variables):
        with pytest.raises(
            DamagedCheckpointError, match=r"no intact checkpoint \(step 2: .*; step 1: .*\)\. Restore one"
        ):
            use(workdir)
    assert contents(workdir) == before


def test_incomplete_folders_of_later_steps(workdir):
    folder = workdir / "checkpoints"
    (folder / "3").mkdir()
    shutil.copytree(folder / "2" / "params", folder / "4" / "params")  # half a copy
    shutil.copytree(folder / "2", folder / "5.orbax-checkpoint-tmp")
    (folder / "6").write_text("no checkpoint")
    _, variables = load_variables(workdir)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], kernel(2))
    assert_same(restore(workdir), make_state(2))
    for step in (4, 7):
        with Checkpointer(workdir, keep=2) as checkpointer:
            checkpointer.save(step, make_state(step))
        assert_same(restore(workdir), make_state(step))


def test_checkpoint_with_other_arrays_is_not_damaged(workdir):
    with Checkpointer(workdir, keep=2) as checkpointer, pytest.raises(ConfigError) as error:
        checkpointer.restore_latest(make_state(0, size=7))
    assert not isinstance(error.value, DamagedCheckpointError)
    assert "head/kernel was float32[5], is float32[7]" in str(error.value)
    assert not (workdir / "corrupt").exists()


def test_damaged_best_or_named_checkpoint_is_not_replaced_by_another(workdir):
    save_best(workdir, 1, {"params": make_state(1).params})
    destroy(workdir / "best" / "1")
    destroy(workdir / "checkpoints" / "2")
    for checkpoint in ("best", 2):
        with pytest.raises(DamagedCheckpointError, match="use another checkpoint"):
            load_variables(workdir, checkpoint)
    _, variables = load_variables(workdir, 1)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], kernel(1))


@pytest.mark.slow
def test_run_resumes_from_the_previous_checkpoint(finished_run, tmp_path, caplog):
    """The last step, 10, is damaged: it is repeated from step 9 and saved again."""
    from mrcnn_jax.training.train import train

    run = shutil.copytree(finished_run.workdir, tmp_path / "run")
    destroy(run / "checkpoints" / "10")
    train(finished_run.config, run)
    assert "the run resumes from step 9" in caplog.text
    _, variables = load_variables(run, 10)
    assert_same(variables["params"], jax.device_get(finished_run.state.params))
    assert (run / "corrupt" / "10").is_dir()
