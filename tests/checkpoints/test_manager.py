"""Saving and restoring of checkpoints: exact values, number kept, interrupted saves, selection by step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from support.checkpoint_states import assert_same, make_state

from mrcnn_jax.checkpoints.manager import Checkpointer, load_variables, save_best
from mrcnn_jax.checkpoints.workdir import prepare_workdir
from mrcnn_jax.config import Config, ModelConfig

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


def test_round_trip_and_only_the_last_are_kept(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore_latest(make_state(0)) is None
        for step in (1, 2, 3):
            checkpointer.save(step, make_state(step))
        checkpointer.save(3, make_state(9))  # an existing step is not overwritten
        checkpointer.wait()
        restored = checkpointer.restore_latest(jax.eval_shape(lambda: make_state(0)))
    assert_same(restored, make_state(3))
    assert isinstance(restored.params["head"]["kernel"], np.ndarray)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    size = 2_000_000  # large enough to be still written in the background
    state = jax.device_put(make_state(1, size))
    destroy = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state)
        jax.block_until_ready(destroy(state))
        checkpointer.wait()
        restored = checkpointer.restore_latest(make_state(0, size))
    assert_same(restored, make_state(1, size))


def test_interrupted_save_is_ignored(tmp_path):
    """A process is killed (SIGKILL) in the middle of a save."""
    script = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from pathlib import Path
        from support.checkpoint_states import make_state
        from mrcnn_jax.checkpoints.manager import Checkpointer

        folder = Path(sys.argv[1])
        checkpointer = Checkpointer(folder, keep=3)
        checkpointer.save(1, make_state(1, 8_000_000))
        checkpointer.wait()
        checkpointer.save(2, make_state(2, 8_000_000))
        while not any("tmp" in path.name for path in (folder / "checkpoints").iterdir()):
            assert not (folder / "checkpoints" / "2").exists(), "the save was complete before it could be interrupted"
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run_python(script, tmp_path)
    assert done.returncode == -9, done.stderr
    assert any("tmp" in path.name for path in (tmp_path / "checkpoints").iterdir())

    template = make_state(0, 8_000_000)
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        assert_same(checkpointer.restore_latest(template), make_state(1, 8_000_000))
        checkpointer.save(2, make_state(2, 8_000_000))  # despite the unfinished checkpoint
        checkpointer.wait()
        assert int(checkpointer.restore_latest(template).step) == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_variables_load_without_training_packages(tmp_path):
    config = Config(model=ModelConfig(num_classes=1, category_ids=(7,), category_names=("cell",)))
    prepare_workdir(tmp_path, config)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(4, make_state(4))
    script = """
        import sys
        for name in ("grain", "tensorflow_datasets", "tensorboardX", "rich", "pycocotools", "cv2"):
            sys.modules[name] = None  # importing it fails
        import numpy as np
        from mrcnn_jax.checkpoints.manager import load_variables

        config, variables = load_variables(sys.argv[1])
        assert config.model.category_names == ("cell",)
        np.save(sys.argv[1] + "/mean.npy", variables["frozen"]["mean"])
        np.save(sys.argv[1] + "/kernel.npy", variables["params"]["head"]["kernel"])
        assert set(variables) == {"params", "frozen"}
    """
    done = run_python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "mean.npy"), make_state(4).model_state["frozen"]["mean"])
    np.testing.assert_array_equal(np.load(tmp_path / "kernel.npy"), make_state(4).params["head"]["kernel"])


def run_python(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_folders_without_a_run_or_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a workdir of train\.py"):
        load_variables(tmp_path)
    prepare_workdir(tmp_path, Config())
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        load_variables(tmp_path)


def test_checkpoint_is_selected_by_step_or_as_the_best(tmp_path):
    prepare_workdir(tmp_path, Config())
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (3, 4):
            checkpointer.save(step, make_state(step))
    with pytest.raises(FileNotFoundError, match="no best checkpoint yet"):
        load_variables(tmp_path, "best")
    for step in (7, 9, 9, 2):  # evaluated again after a restart; an earlier step
        save_best(tmp_path, step, {"params": make_state(step).params, "frozen": make_state(step).model_state["frozen"]})
        assert [path.name for path in (tmp_path / "best").iterdir()] == [str(step)]
    expected = {"best": 2, "latest": 4, "3": 3, 4: 4}
    for checkpoint, step in expected.items():
        _, variables = load_variables(tmp_path, checkpoint)
        assert_same(variables, {"params": make_state(step).params, **make_state(step).model_state})
    for missing in (5, "5", "newest"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint {missing!r}; available steps: 3, 4"):
            load_variables(tmp_path, missing)


def test_averaged_weights_are_loaded_and_both_are_restored(tmp_path):
    """Loading reads only what it needs: `params` and `training` may be missing."""
    prepare_workdir(tmp_path, Config())
    statistics = {"frozen": make_state(2).model_state["frozen"], "batch_stats": {"mean": np.full(2, 7, np.float32)}}
    average = {"params": make_state(5).params, "model_state": {"batch_stats": {"mean": np.full(2, 8, np.float32)}}}
    state = make_state(2)._replace(model_state=statistics, ema=average)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(2, state)
        checkpointer.wait()
        assert_same(checkpointer.restore_latest(state), state)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "params")
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "training")
    _, variables = load_variables(tmp_path)
    assert_same(variables, {"params": average["params"], **statistics, **average["model_state"]})


def test_only_the_main_process_accesses_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Checkpointer(tmp_path / "run", keep=2) as checkpointer:
        checkpointer.save(1, make_state(1))
        checkpointer.wait()
    save_best(tmp_path / "run", 1, {"params": make_state(1).params})
    assert not (tmp_path / "run").exists()
