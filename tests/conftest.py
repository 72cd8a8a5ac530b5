"""Shared set-up: two virtual CPU devices, strict rank promotion, the persistent compilation cache; golden arrays,
a finished training run, a small COCO dataset, results of an evaluation.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest
from support import fake_results, programs, tiny
from support.coco_folder import CocoFolder

from mrcnn_jax.config import Config, ModelConfig

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run; on a busy machine an example takes its time.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

jax.config.update("jax_numpy_rank_promotion", "raise")
# A program reads NumPy arrays where they lie: a test that changes one after a call must not change what the call sees.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=ROOT / "tests" / "golden", help="directory of reference arrays (default: ours)"
    )
    parser.addoption(
        "--optimized", action="store_true", help="compile as users do; tests marked `optimized` are skipped without it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set XLA's flags, which it reads when the first array is made, for this process and those that tests start."""
    flags = ["--xla_force_host_platform_device_count=2"]
    if not config.getoption("--optimized"):
        # Tests compile far more than they compute.
        flags.append("--xla_backend_optimization_level=0")
        if importlib.metadata.version("jaxlib") < "0.12":  # later ones have no other way to emit code
            flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests send; a job in the background ignores it


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("optimized") and not item.config.getoption("--optimized"):
        pytest.skip("needs pytest --optimized")


class GoldenDirectory:
    """Reference arrays of torchvision and Detectron2; a file that the directory lacks skips the test that wants it."""

    def __init__(self, path: Path):
        self.path = path

    def file(self, name: str) -> Path:
        if not (self.path / name).is_file():
            pytest.skip(f"{self.path} has no {name}")
        return self.path / name

    def __call__(self, name: str) -> dict[str, Any]:
        with np.load(self.file(name)) as arrays:
            return dict(arrays)

    def recipe(self) -> ModuleType:
        """The weight recipe that lies beside the arrays."""
        spec = importlib.util.spec_from_file_location("golden_recipe", self.file("recipe.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> GoldenDirectory:
    return GoldenDirectory(pytestconfig.getoption("--golden").resolve())


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A folder of real images by name; skips where it is absent (they are not ours to ship)."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("MRCNN_JAX_TEST_DATA", ROOT.parent / "shared" / "data")) / name
        if not folder.is_dir():
            pytest.skip(f"the real images of {name!r} are not here ({folder})")
        return folder

    return find


@pytest.fixture(scope="session")
def tiny_model_config() -> ModelConfig:
    """A whole Mask R-CNN for images of 64 x 64 pixels, as small as it can be; its classes are not set."""
    return tiny.model()


class Run(NamedTuple):
    """A run that has been trained to its end."""

    config: Config
    workdir: Path
    state: Any
    output: str


@pytest.fixture(scope="session")
def tiny_config(tiny_model_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny.config(tiny_model_config, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", autouse=True)
def shared_programs() -> Iterator[None]:
    """Runs of the same network in this process share its train step."""
    with pytest.MonkeyPatch.context() as patch:
        programs.share_train_steps(patch.setattr)
        yield


@pytest.fixture(scope="session")
def finished_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny recipe, trained on both virtual devices without interruption."""
    from mrcnn_jax.training.train import train

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()) as output, programs.first_use():
        state = train(tiny_config, workdir)
    return Run(tiny_config, workdir, state, output.getvalue())


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path / "coco")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> CocoFolder:
    """The same for tests that only read it."""
    return CocoFolder(tmp_path_factory.mktemp("coco") / "coco")


@pytest.fixture
def rewrite_later() -> Callable[[Path], None]:
    """Give a file another time of change, as an edit would."""

    def touch(path: Path) -> None:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))

    return touch


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, annotations.json and results.json."""
    folder = tmp_path_factory.mktemp("report") / "made"
    fake_results.make(folder)
    return folder
