"""The wheel, installed alone in a new environment, outside of the clone: every command of a first hour works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "--config.data.root=shapes",
    "--config.data.shapes.train_images=24",
    "--config.data.shapes.eval_images=4",
    "--config.train.steps=3",
    "--config.optimizer.warmup_steps=1",
    "--config.train.batch_size=4",
    "--config.eval.batch_size=2",
)

pytestmark = pytest.mark.slow
Run = Callable[..., str]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def run(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel and what it requires, in an empty folder."""
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    (wheel,) = packages.glob("*.whl")
    constraints = ("--constraint", ROOT / "constraints.txt")
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *constraints, wheel], check=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"MRCNN_JAX_CACHE": str(folder / "cache"), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla")}

    def call(program: str, *arguments: object) -> str:
        command = [programs / program, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call


def test_source_distribution(packages):
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "configs/quickstart.py", "mrcnn_jax/py.typed"} <= names


def test_package_is_the_installed_one_and_typed(run):
    path = run("python", "-c", "import mrcnn_jax; print(mrcnn_jax.__file__)").strip()
    assert ROOT not in Path(path).parents
    assert (Path(path).parent / "py.typed").is_file()


def test_recipes_have_names(run):
    recipes = {path.stem for path in (ROOT / "configs").glob("*.py")}
    listed = {line.split()[0].rstrip("*") for line in run("mrcnn", "config").splitlines() if line}
    assert recipes <= listed


def test_a_first_hour(run, tmp_path):
    """Train, evaluate, predict, convert, check."""
    run("mrcnn", "train", "--config=quickstart", "--workdir=runs/quickstart", *SMALL)
    assert "Boxes (bbox), 4 images" in run("mrcnn", "eval", "--workdir=runs/quickstart", "--report")
    run("mrcnn", "predict", "--model=runs/quickstart", "shapes/val", "--output=found")
    found = run("python", "-c", "import json; print(json.dumps(json.load(open('found/summary.json'))))")
    assert json.loads(found)["images"] == 4
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in "abc":
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 10:50] = 1
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((64, 64, 3), 90, np.uint8))
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    options = ("--values=instances", "--categories=cell", "--holdout=0.4", f"--output={tmp_path}")
    run("mrcnn", "convert", "masks", tmp_path / "images", tmp_path / "masks", *options)
