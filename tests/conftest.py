"""Settings and fixtures of all tests.

Two virtual CPU devices, strict rank promotion, a compilation cache; reference arrays, a finished training run, a small
COCO dataset, results of an evaluation.
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
from support import fake_results, file_server, programs, tiny
from support.coco_folder import CocoFolder

from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.runtime import download

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run, without a deadline for busy machines.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs read NumPy arrays in place: a test that changes one after a call must not change the input of the call.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=ROOT / "tests" / "golden",
        help="directory of reference arrays (default: tests/golden)",
    )
    parser.addoption(
        "--optimized", action="store_true", help="compile as users do; tests marked `optimized` are skipped without it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the flags of XLA for this process and for subprocesses, before JAX reads them at the first array."""
    flags = ["--xla_force_host_platform_device_count=2"]
    if not config.getoption("--optimized"):
        # Compilation takes most of the time of the tests.
        flags.append("--xla_backend_optimization_level=0")
        if importlib.metadata.version("jaxlib") < "0.12":  # later versions have no other code generator
            flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send it; background jobs ignore it by default


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("optimized") and not item.config.getoption("--optimized"):
        pytest.skip("needs pytest --optimized")


class GoldenDirectory:
    """Reference arrays of torchvision and Detectron2. A missing file skips the test."""

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
        """Import the weight recipe in the directory."""
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
    """Return a folder of real images by name; skips the test if it is missing. The images are not redistributable."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("MRCNN_JAX_TEST_DATA", ROOT.parent / "shared" / "data")) / name
        if not folder.is_dir():
            pytest.skip(f"the real images {name!r} are missing ({folder})")
        return folder

    return find


@pytest.fixture(scope="session")
def tiny_model_config() -> ModelConfig:
    """A minimal Mask R-CNN for images of 64 x 64 pixels, without `num_classes`."""
    return tiny.model()


class Run(NamedTuple):
    """A finished run."""

    config: Config
    workdir: Path
    state: Any
    output: str


@pytest.fixture(scope="session")
def tiny_config(tiny_model_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny.config(tiny_model_config, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", autouse=True)
def shared_programs() -> Iterator[None]:
    """Share train steps between runs of the same network in this process."""
    with pytest.MonkeyPatch.context() as patch:
        programs.share_train_steps(patch.setattr)
        yield


@pytest.fixture(scope="session")
def finished_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the tiny recipe on both virtual devices without interruption."""
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
    """A COCO folder for tests that only read it."""
    return CocoFolder(tmp_path_factory.mktemp("coco") / "coco")


@pytest.fixture
def rewrite_later() -> Callable[[Path], None]:
    """Change the modification time of a file, as an edit would."""

    def touch(path: Path) -> None:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))

    return touch


@pytest.fixture
def download_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[file_server.FileServer]:
    """A file server that stands for all servers (`MRCNN_JAX_MIRROR`), and empty caches; subprocesses have them, too."""
    for name in ("MRCNN_JAX_CACHE", "TORCH_HOME", "FVCORE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "caches" / name))
    monkeypatch.delenv("MRCNN_JAX_OFFLINE", raising=False)
    with file_server.serve({}) as server:
        monkeypatch.setenv("MRCNN_JAX_MIRROR", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(download, "_BACKOFF", 0.0)
        yield server


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, annotations.json and results.json."""
    folder = tmp_path_factory.mktemp("report") / "made"
    fake_results.make(folder)
    return folder
