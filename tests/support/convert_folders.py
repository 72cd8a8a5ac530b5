"""Images on disk and a runner of the convert command, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_jax.cli import main
from mrcnn_jax.config import DataConfig, SplitConfig
from mrcnn_jax.data import load_split
from mrcnn_jax.data.annotations import read


def save(path: Path, pixels: Any, **options: Any) -> Path:
    """Write an array as an image, in the format of the file extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))).save(path, **options)
    return path


def photograph(path: Path, height: int = 20, width: int = 30) -> Path:
    return save(path, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pixels(annotation: dict[str, Any]) -> np.ndarray:
    """Decode the mask of an annotation, bool (h, w)."""
    return coco_mask.decode(annotation["segmentation"]).astype(bool)


class Command:
    """Runs the command, and loads its output as training does."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.capsys = folder, capsys
        self.output = folder / "out" / "coco.json"

    def run(self, *arguments: object) -> str:
        """Run the command and return its output."""
        status = main(["convert", *map(str, arguments), "--output", str(self.output)])
        printed = self.capsys.readouterr()
        assert (status, printed.err) == (0, "")
        return printed.out

    def refused(self, *arguments: object) -> str:
        """Run a command that must fail without writing a file; return the error message."""
        assert main(["convert", *map(str, arguments), "--output", str(self.output)]) == 2
        assert not self.output.exists()
        said = self.capsys.readouterr().err
        assert said.startswith("error: ")
        return said

    def content(self, images: Path) -> dict[str, Any]:
        """Return the written JSON, after checking that it loads without problems."""
        assert read(self.output).problems == []
        split = SplitConfig(self.output.name, str(images.resolve()))
        data = DataConfig(root=str(self.output.parent), train=split, cache_dir=str(self.folder / "cache"))
        content = json.loads(self.output.read_text())
        dataset = load_split(data, "train")
        assert dataset.problems == ()
        assert dataset.instances.sum() == sum(not annotation["iscrowd"] for annotation in content["annotations"])
        return content
