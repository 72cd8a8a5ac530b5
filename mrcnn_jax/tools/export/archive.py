"""Files that run without this package: StableHLO programs for CPUs, GPUs and TPUs, with weights and a manifest.

A ZIP file of

    manifest.json   versions, license, classes, how to resize, shapes of the programs, the configuration
    weights.npz     all variables, by paths such as "params/box/fc1/kernel"
    programs/       a program for each bucket and batch size, of `jax.export`

`inference.exported` reads it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import mrcnn_jax
from mrcnn_jax.config import Config, to_json
from mrcnn_jax.inference.postprocess import categories
from mrcnn_jax.runtime import files
from mrcnn_jax.tools.export.program import (
    MaskFormat,
    exported_function,
    flat_weights,
    input_shapes,
)
from mrcnn_jax.weights import release

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = 1

log = logging.getLogger(__name__)


def write(
    path: str | os.PathLike[str],
    config: Config,
    variables: Mapping[str, Any],
    *,
    batch_size: int = 1,
    mask_format: MaskFormat = "boxes",
    license_name: str = "unknown",
) -> None:
    """Write programs for every bucket of `config.data`, for single images and for batches of `batch_size`."""
    weights = flat_weights(variables)
    stored = io.BytesIO()
    np.savez(stored, **weights)  # type: ignore[arg-type]  # of NumPy's stub: `allow_pickle`
    function = exported_function(config.model, mask_format)
    members: dict[str, bytes] = {"weights.npz": stored.getvalue()}
    shapes = {}
    for bucket, batch in itertools.product(config.data.buckets, sorted({1, batch_size})):
        shape = (batch, *bucket)
        name = f"programs/{'x'.join(map(str, shape))}.bin"
        members[name], shapes[name] = _serialized_program(function, weights, shape), shape
        log.info("%s", name)
    manifest = {
        **_manifest(config),
        "masks": None if config.model.mask is None else mask_format,
        "license": license_name,
        "weights_crc32": zlib.crc32(members["weights.npz"]),
        "programs": shapes,
    }
    members["manifest.json"] = json.dumps(manifest, indent=1).encode()
    files.write_bytes(path, _zip(members))


def _serialized_program(
    function: Callable[..., Any], weights: Mapping[str, np.ndarray], shape: tuple[int, int, int]
) -> bytes:
    """Return the function of `exported_function`, of images of `shape` (B, H, W), lowered for all platforms."""
    weight_shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    with _without_source_locations():
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(
            weight_shapes, *input_shapes(shape).values()
        )
        return bytes(exported.serialize())


@contextlib.contextmanager
def _without_source_locations() -> Iterator[None]:
    """Keep names and lines of source files, which are paths of this machine, out of programs."""
    option = "jax_traceback_in_locations_limit"
    former = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, former)


def _manifest(config: Config) -> dict[str, Any]:
    """Return what a reader needs to know of the model, and the configuration, without paths of this machine."""
    ids, names = categories(config.model)
    mask, keypoint, data = config.model.mask, config.model.keypoint, config.data
    return {
        "format": FORMAT,
        "name": config.name,
        "version": mrcnn_jax.__version__,
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "categories": [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)],
        "max_detections": config.model.box.max_detections,
        "paste": None if mask is None else mask.paste,
        "keypoints": None if keypoint is None else config.model.keypoint_names,
        "images": "uint8 RGB; bilinear resizing without antialiasing; padded with zeros below and on the right",
        "resize": {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge},
        "config": json.loads(to_json(release.without_local_paths(config))),
    }


def _zip(members: Mapping[str, bytes]) -> bytes:
    """Return a ZIP file, the same for the same members."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in sorted(members.items()):
            kind = zipfile.ZIP_STORED if name.endswith(".npz") else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name), data, kind)  # without the time, which would differ
    return content.getvalue()
