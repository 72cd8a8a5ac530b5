"""The wheel, installed alone in a new environment, outside of the clone: every command of a first hour works."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import jax
import numpy as np
import pytest
from support.file_server import FileServer

from mrcnn_jax.config import presets
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.weights import torchvision_names, zoo

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

# `mrcnn`, with another hash of some published weights.
WITH_HASH = """
import sys
from mrcnn_jax.cli import main
from mrcnn_jax.weights import zoo
zoo.ENTRIES = (zoo.find({name!r})._replace(hash_prefix={digits!r}),)
sys.exit(main(sys.argv[1:]))
"""

pytestmark = pytest.mark.slow


class Installation:
    """An environment that has the wheel and what it requires, and an empty folder."""

    def __init__(self, wheel: Path, environment: Path, folder: Path):
        venv.create(environment, with_pip=True)
        self.programs, self.folder = environment / "bin", folder
        pip = (self.programs / "python", "-m", "pip", "install", "--quiet")
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", wheel], check=True)

    def run(self, program: str, *arguments: object, status: int = 0, **variables: str) -> str:
        """Run a program of the environment in the folder, and return what it prints."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        caches = {"MRCNN_JAX_CACHE": str(self.folder / "cache"), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache/xla")}
        done = subprocess.run(
            [self.programs / program, *map(str, arguments)],
            cwd=self.folder,
            env={**inherited, **caches, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, f"{arguments}:\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    (wheel,) = packages.glob("*.whl")
    return Installation(wheel, tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere"))


def test_source_distribution(packages):
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "configs/quickstart.py", "mrcnn_jax/py.typed"} <= names


def test_package_is_the_installed_one_and_typed(installed):
    path = Path(installed.run("python", "-c", "import mrcnn_jax; print(mrcnn_jax.__file__)").strip())
    assert ROOT not in path.parents
    assert (path.parent / "py.typed").is_file()


def test_recipes_have_names(installed):
    recipes = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert recipes <= {line.split()[0].rstrip("*") for line in installed.run("mrcnn", "config").splitlines() if line}


def test_a_first_hour(installed, tmp_path):
    """Train, evaluate, predict, convert, check."""
    run, folder = installed.run, installed.folder
    run("mrcnn", "train", "--config=quickstart", *SMALL)
    assert "Boxes (bbox), 4 images" in run("mrcnn", "eval", "--workdir=runs/quickstart", "--report")
    run("mrcnn", "predict", "--model=runs/quickstart", "shapes/val")
    assert json.loads((folder / "results" / "summary.json").read_text())["images"] == 4
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:50] = 1
    for kind, pixels in {"images": np.full((64, 64, 3), 90, np.uint8), "masks": mask}.items():
        (tmp_path / kind).mkdir()
        for name in "abc":
            cv2.imwrite(str(tmp_path / kind / f"{name}.png"), pixels)
    options = ("--values=instances", "--categories=cell", "--holdout=0.4", f"--output={tmp_path}")
    run("mrcnn", "convert", "masks", tmp_path / "images", tmp_path / "masks", *options)
    assert "training would start" in run("mrcnn", "check", tmp_path)


def test_published_weights(installed, download_server: FileServer):
    """Generated weights with the names and shapes of the published ones, from a server that fails in two ways."""
    torch = pytest.importorskip("torch", reason="writes the file of weights")
    name = "maskrcnn_resnet50_fpn"
    model = presets.torchvision_model(name)
    noise = np.random.default_rng(0)
    shapes = variable_shapes(build_model(model))
    variables = jax.tree.map(lambda leaf: noise.uniform(0, 0.02, leaf.shape).astype(np.float32), shapes)
    state = torchvision_names.export_state(variables)
    file = io.BytesIO()
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, file)
    content, path = file.getvalue(), urlsplit(zoo.find(name).url).path
    program = WITH_HASH.format(name=name, digits=hashlib.sha256(content).hexdigest()[:8])
    cv2.imwrite(str(installed.folder / "photo.jpg"), noise.integers(0, 255, (60, 80, 3), np.uint8))

    def predict(output: str, status: int = 0) -> str:
        command = ("-c", program, "predict", f"--model={name}", "photo.jpg", f"--output={output}")
        return installed.run("python", *command, status=status, MRCNN_JAX_MIRROR=download_server.url)

    download_server.files[path] = bytes([content[0], content[1] ^ 1]) + content[2:]
    assert "its SHA256 is" in predict("found", status=2)
    download_server.files[path] = content
    download_server.requests.clear()
    download_server.close_after.append(len(content) // 2)
    predict("found")
    assert download_server.requests == [(path, None), (path, f"bytes={len(content) // 2}-")]
    assert cv2.imread(str(installed.folder / "found" / "photo.jpg")) is not None
    predict("again")
    assert len(download_server.requests) == 2
    results = [(installed.folder / folder / "results.json").read_bytes() for folder in ("found", "again")]
    assert results[0] == results[1]
