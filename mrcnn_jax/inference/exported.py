"""Runs a file of `mrcnn export` with jax, numpy and flatbuffers alone: copy this module into other programs."""

import io
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
            weights = archive.read("weights.npz")
            files = {tuple(shape): bytearray(archive.read(name)) for name, shape in info["programs"].items()}
        self.programs = {shape: jax.jit(jax.export.deserialize(file).call) for shape, file in files.items()}
        self.weights = jax.device_put(dict(np.load(io.BytesIO(weights))))

    def __call__(self, images: Any, sizes: Any, original_sizes: Any, threshold: float = 0, limit: int = 10**6) -> Any:
        """Detect in uint8 RGB images (B, H, W, 3), resized to `sizes` (B, 2), then padded below and on the right."""
        arguments = np.int32(sizes), np.int32(original_sizes), np.float32(threshold), np.int32(limit)
        return self.programs[images.shape[:3]](self.weights, images, *arguments)

    def detect(self, image: Any, **options: Any) -> dict[str, Any]:
        """Return what is found in a uint8 RGB image (h, w, 3) of any size, best first, in pixels of that image."""
        edges, size = self.manifest["resize"], np.array(image.shape[:2])
        scale = min(edges["shortest_edge"] / size.min(), edges["longest_edge"] / size.max())
        by_area = sorted((shape[1:] for shape in self.programs), key=np.prod)
        bucket = max(by_area, key=lambda shape: min(scale, *(shape / size)))
        resized = resize(image, np.clip(np.floor(size * min(scale, *(bucket / size)) + 0.5), 1, bucket).astype(int))
        padded = np.zeros((1, *bucket, 3), np.uint8)
        padded[0, : resized.shape[0], : resized.shape[1]] = resized
        found = self(padded, [resized.shape[:2]], [size], **options)
        return {name: np.asarray(array)[np.asarray(found["valid"])] for name, array in found.items()}


def resize(image: Any, size: Any) -> Any:
    """Return an image (h, w, 3) resized to `size`, bilinearly, without antialiasing."""
    for axis, (old, new) in enumerate(zip(image.shape, size, strict=False)):
        position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = position.astype(int)
        weight = np.float32(position - low).reshape(-1, *[1] * (2 - axis))
        image = image.take(low, axis) * (1 - weight) + image.take(np.minimum(low + 1, old - 1), axis) * weight
    return np.floor(image + 0.5).astype(np.uint8)
