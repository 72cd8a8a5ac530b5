"""Fixtures: tiny networks of every architecture with random variables, and monitored reading of weights files."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import functools
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mrcnn_jax.config import AnchorConfig, FPNConfig, KeypointHeadConfig, ModelConfig
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, build_model, variable_shapes
from mrcnn_jax.weights import naming
from mrcnn_jax.weights.io import weight_files
from mrcnn_jax.weights.preprocessing import TORCHVISION, apply_preprocessing


def _variant(tiny: ModelConfig, name: str) -> ModelConfig:
    """A tiny network with the architecture `name`."""

    def backbone(**fields: Any) -> Any:
        return dataclasses.replace(tiny.backbone, **fields)

    def box(**fields: Any) -> Any:
        return dataclasses.replace(tiny.box, **fields)

    assert tiny.mask is not None
    mask = tiny.mask
    one_map = AnchorConfig(sizes=((16.0, 32.0),))
    changes: dict[str, dict[str, Any]] = {
        "gn": {},
        "frozen": {"backbone": backbone(norm="frozen_bn")},
        "bn": {"backbone": backbone(norm="bn")},
        "bottleneck": {"backbone": backbone(name="resnet50", norm="frozen_bn")},
        "resnext": {"backbone": backbone(name="resnet50", norm="frozen_bn", groups=2, width_per_group=32)},
        "keypoints": {
            "backbone": backbone(norm="frozen_bn"),
            "mask": None,
            "keypoint": KeypointHeadConfig(num_keypoints=4, conv_layers=2, channels=6, flip_map=(0, 1, 2, 3)),
        },
        "v2": {
            "backbone": backbone(norm="bn"),
            "fpn": FPNConfig(16, norm="bn"),
            "rpn": dataclasses.replace(tiny.rpn, conv_layers=2),
            "box": box(conv_layers=4, channels=12, norm="bn", fc_layers=1),
            "mask": dataclasses.replace(mask, conv_layers=2, norm="sync_bn"),
        },
        "gn everywhere": {
            "fpn": FPNConfig(16, norm="gn"),
            "box": box(conv_layers=2, channels=12, norm="gn", fc_layers=2),
            "mask": dataclasses.replace(mask, norm="gn"),
        },
        "agnostic": {"box": box(class_agnostic=True), "mask": dataclasses.replace(mask, class_agnostic=True)},
        "c4": {
            "backbone": backbone(norm="frozen_bn"),
            "features": "c4",
            "anchors": one_map,
            "box": box(fc_layers=0, pool_size=4),
            "mask": dataclasses.replace(mask, conv_layers=0),
        },
        "dc5": {"backbone": backbone(name="resnet50", norm="frozen_bn"), "features": "dc5", "anchors": one_map},
    }
    return dataclasses.replace(tiny, **changes[name])


@pytest.fixture(scope="session")
def variant(tiny_model_config: ModelConfig) -> Callable[..., ModelConfig]:
    """variant(name, num_classes=3): the configuration of a tiny network."""

    def make(name: str, num_classes: int = 3) -> ModelConfig:
        return dataclasses.replace(_variant(tiny_model_config, name), num_classes=num_classes)

    return make


@functools.cache
def _shapes(config: ModelConfig) -> Any:
    return variable_shapes(build_model(config))


def shapes_of(model: MaskRCNN) -> Any:
    """`variable_shapes(model)`, cached for networks that differ only in preprocessing and categories."""
    return _shapes(
        dataclasses.replace(apply_preprocessing(model.config, TORCHVISION), category_ids=(), category_names=())
    )


@pytest.fixture(scope="module", autouse=True)
def cached_shapes() -> Iterator[None]:
    """Cache the shapes of networks, because each computation traces the whole network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naming, "variable_shapes", shapes_of)
        yield


@pytest.fixture(scope="session")
def random_variables() -> Callable[[ModelConfig], Any]:
    """random_variables(config): normally distributed variables of that network."""

    def make(config: ModelConfig) -> Any:
        rng = np.random.default_rng(0)
        shapes = shapes_of(build_model(config))
        variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
        return jax.tree_util.tree_map_with_path(_positive_variance, variables)

    return make


def _positive_variance(path: Any, leaf: np.ndarray) -> np.ndarray:
    return np.abs(leaf) + np.float32(0.5) if path[-1].key == "var" else leaf


@pytest.fixture(scope="session")
def as_blobs() -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """as_blobs(state): a Detectron2 state dict with frozen batch norms as Detectron's blobs."""
    return _blobs


_LAYERS = [
    (r"(?:.*\.)?stem\.conv1", "conv1"),
    (r"(?:.*\.)?res(\d)\.(\d+)\.shortcut", r"res\1_\2_branch1"),
    (r"(?:.*\.)?res(\d)\.(\d+)\.conv1", r"res\1_\2_branch2a"),
    (r"(?:.*\.)?res(\d)\.(\d+)\.conv2", r"res\1_\2_branch2b"),
    (r"(?:.*\.)?res(\d)\.(\d+)\.conv3", r"res\1_\2_branch2c"),
    (r"backbone\.fpn_lateral5", "fpn_inner_res5_2_sum"),
    (r"backbone\.fpn_lateral(\d)", r"fpn_inner_res\1_2_sum_lateral"),
    (r"backbone\.fpn_output(\d)", r"fpn_res\1_2_sum"),
    (r"proposal_generator\.rpn_head\.conv", "conv_rpn"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn_cls_logits"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn_bbox_pred"),
    (r"roi_heads\.box_head\.fc1", "fc6"),
    (r"roi_heads\.box_head\.fc2", "fc7"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)", r"\1"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)", r"_[mask]_fcn\1"),
    (r"roi_heads\.mask_head\.deconv", "conv5_mask"),
    (r"roi_heads\.mask_head\.predictor", "mask_fcn_logits"),
    (r"roi_heads\.keypoint_head\.(conv_fcn\d)", r"\1"),
    (r"roi_heads\.keypoint_head\.score_lowres", "kps_score_lowres"),
]


def _blobs(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    blobs = {}
    for tensor, value in state.items():
        layer, _, leaf = tensor.removesuffix(".weight").removesuffix(".bias").partition(".norm")
        if leaf.startswith(".running"):
            continue
        pattern, name = next((pattern, name) for pattern, name in _LAYERS if re.fullmatch(pattern, layer))
        blob = re.sub(pattern, name, layer)
        if ".norm." in tensor:
            scale = state[f"{layer}.norm.weight"] / np.sqrt(state[f"{layer}.norm.running_var"] + np.float32(1e-5))
            offset = state[f"{layer}.norm.bias"] - state[f"{layer}.norm.running_mean"] * scale
            blob = "res_conv1" if blob == "conv1" else blob
            blobs |= {f"{blob}_bn_s": scale, f"{blob}_bn_b": offset}
        else:
            blobs[f"{blob}_{'w' if tensor.endswith('.weight') else 'b'}"] = _background_first(blob, value)
    return blobs


def _background_first(blob: str, value: np.ndarray) -> np.ndarray:
    if blob == "cls_score":
        return np.roll(value, 1, axis=0)
    rows = {"bbox_pred": 4, "mask_fcn_logits": 1}.get(blob, 0)
    return np.concatenate([np.full((rows, *value.shape[1:]), 7, np.float32), value])


# Audit events of imports, code execution, processes, connections and file access.
_AUDITED = (
    "import",
    "exec",
    "compile",
    "pickle.",
    "marshal.",
    "code.",
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "open",
)
_events: list[str] | None = None


def _record_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event.startswith(_AUDITED) and threading.current_thread() is threading.main_thread():
        _events.append(f"{event} {arguments}")


sys.addaudithook(_record_event)
codecs.lookup("cp437")  # zipfile decodes names with this codec, whose first use imports a module


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Limit the memory that can be allocated inside to a few gigabytes, where the system can."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statistics.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _read_watched(path: Path) -> Any:
    """`weight_files.read(path)`. Fails if reading does anything but open this file.

    Python's unpickler may ask for much memory if a pickle is damaged; it gets no more than a few gigabytes.
    """
    global _events
    with _limited_memory():
        _events = []
        try:
            return weight_files.read(path)
        finally:
            events, _events = _events, None
            _check_events(events, path)


def _check_events(events: list[str], path: Path) -> None:
    # NumPy parses the header of an array in a .npz with ast.literal_eval, which executes nothing ("exec").
    events = [event for event in events if not (event.startswith("compile ") and event.endswith("'<unknown>')"))]
    assert all(event.startswith("open") and repr(str(path)) in event for event in events), events
    assert len(events) == 1


@pytest.fixture
def read_watched(tmp_path: Path) -> Callable[[bytes], Any]:
    """read_watched(content): the result of `weight_files.read` for a file with that content; see `_read_watched`."""

    def read(content: bytes) -> Any:
        path = tmp_path / "weights"
        path.write_bytes(content)
        return _read_watched(path)

    return read


@pytest.fixture
def refusal(read_watched: Callable[[bytes], Any], tmp_path: Path) -> Callable[[bytes], str]:
    """refusal(content): the message of the WeightsError for a file with that content; see `_read_watched`."""

    def refuse(content: bytes) -> str:
        with pytest.raises(WeightsError) as error:
            read_watched(content)
        message = str(error.value)
        assert message.startswith(f"{tmp_path / 'weights'}: ")
        assert message.isascii()
        assert message.isprintable()
        return message.partition(": ")[2]

    return refuse
