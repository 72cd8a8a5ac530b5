"""Runs a file of `mrcnn export` with jax, numpy and flatbuffers alone: copy this module into other programs."""

import json
import zipfile
from typing import Any

import jax
import numpy as np


class ExportedModel:
    """A file of `mrcnn export`: its manifest, its weights, and a program for each shape (B, H, W) of images."""

    def __init__(self, path: Any):
        with zipfile.ZipFile(path) as archive:
            info = self.manifest = json.loads(archive.read("manifest.json"))
            if info["format"] != 1:
                raise ValueError(f"{path} has format {info['format']}; this program reads format 1")
            if jax.__version_info__ < tuple(map(int, info["jax"].split(".")[:3])):
                raise ValueError(f"{path} was written by jax {info['jax']}; this is {jax.__version__}: update jax")
            if info["weights_crc32"] != archive.getinfo("weights.npz").CRC:
                raise ValueError(f"{path}: weights.npz is of another model; export the model again")
            self.weights = jax.device_put(dict(np.load(archive.open("weights.npz"))))
            programs = {name: jax.export.deserialize(bytearray(archive.read(name))) for name in info["programs"]}
        self.programs = {tuple(info["programs"][name]): jax.jit(program.call) for name, program in programs.items()}

    def __call__(self, images: Any, sizes: Any, original_sizes: Any, threshold: float = 0, limit: int = 10**6) -> Any:
        """Detect in uint8 RGB images (B, H, W, 3), resized to `sizes` (B, 2), then padded below and on the right."""
        arguments = np.int32(sizes), np.int32(original_sizes), np.float32(threshold), np.int32(limit)
        return self.programs[images.shape[:3]](self.weights, images, *arguments)

    def detect(self, image: Any, **options: Any) -> dict[str, Any]:
        """Return what is found in a uint8 RGB image (h, w, 3) of any size, best first, in pixels of that image."""
        edges, size = self.manifest["resize"], np.array(image.shape[:2])
        scale = min(edges["shortest_edge"] / size.min(), edges["longest_edge"] / size.max())
        by_area = sorted((shape[1:] for shape in self.programs), key=np.prod)  # `max` takes the first of equal ones
        bucket = max(by_area, key=lambda shape: min(scale, *(shape / size)))
        resized = resize(image, np.clip(np.floor(size * min(scale, *(bucket / size)) + 0.5), 1, bucket).astype(int))
        padded = np.zeros((1, *bucket, 3), np.uint8)
        padded[0, : resized.shape[0], : resized.shape[1]] = resized
        found = self(padded, [resized.shape[:2]], [size], **options)
        return {name: np.asarray(array)[np.asarray(found["valid"])] for name, array in found.items()}


def resize(image: Any, size: Any) -> Any:
    """Return an image (h, w, 3) resized to `size`, bilinearly, in the integers of OpenCV's INTER_LINEAR."""
    for axis, old, new in ((1, image.shape[1], size[1]), (0, image.shape[0], size[0])):
        # OpenCV moves columns to the border before it weights them, rows after that.
        position = np.clip(np.float32((np.arange(new) + 0.5) * (old / new) - 0.5), axis - 1, old - axis)
        low = np.floor(position).astype(int)
        weight = np.rint((position - np.float32(low)) * 2048).astype(np.int32).reshape(-1, *[1] * (2 - axis))
        a, b = (np.int32(image.take(np.clip(pixel, 0, old - 1), axis)) for pixel in (low, low + 1))
        a, b = (a >> 4 * (1 - axis)) * (2048 - weight), (b >> 4 * (1 - axis)) * weight
        image = a + b if axis == 1 else ((a >> 16) + (b >> 16) + 2) >> 2
    return image.astype(np.uint8)
