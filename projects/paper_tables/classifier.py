"""An ImageNet in miniature: a residual network that learns to classify single objects before it learns to detect them.

All rows of a table start from it, as the paper's start from an ImageNet classifier. It never sees a RoI, so it favors
no way of pooling them. The file has torchvision's names: `config.init` reads it as it would read theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from mrcnn_jax.config import BackboneConfig, DataConfig, ModelConfig
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.models.layers import Dense
from mrcnn_jax.models.norms import make_norm
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.ops import image as image_ops
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.weights import naming, torchvision_names

SIZE = 64  # pixels of a crop
MARGIN = 1.25  # side of a crop, of the longer side of the object's box
BATCH = 64
RATE = 2e-3
SAVE_EVERY = 50  # steps


class Crops(NamedTuple):
    """Single objects."""

    images: np.ndarray  # (n, SIZE, SIZE, 3) uint8 RGB
    classes: np.ndarray  # (n,) int32, 0..C - 1


class Classifier(nn.Module):
    """Normalized images (B, S, S, 3) -> logits (B, C)."""

    config: BackboneConfig
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = make_norm("bn", self.config.norm_eps)
        assert norm is not None
        stages = ResNet(self.config, norm, name="backbone")(x, train=train)
        return Dense(self.classes, nn.initializers.normal(0.01), name="logits")(stages[-1].mean((1, 2)))


def crops(data: DataConfig) -> Crops:
    """Every object of the training split, with a little of what is around it, resized to SIZE."""
    dataset = load_split(data, "train")
    labels = {category: label for label, category in enumerate(dataset.categories.ids)}
    images, classes = [], []
    for index in range(len(dataset)):
        content, annotations = dataset.record(index)
        picture = dataset.decode(content)
        assert picture is not None, dataset.label(index)
        for annotation in annotations:
            images.append(_crop(picture, annotation["bbox"]))
            classes.append(labels[annotation["category_id"]])
    return Crops(np.stack(images), np.asarray(classes, np.int32))


def train(file: Path, model: ModelConfig, data: DataConfig, *, steps: int, seed: int = 0) -> float:
    """Write the residual network of `model`, taught by `steps` batches of crops of `data`, to `file` (.npz).

    Returns the accuracy over the last tenth of the batches, each looked at before it is learned from. When it is
    interrupted, the same call goes on from what was saved beside `file`.

    `model` gives the network's shape and how pixels are normalized. All of it learns, with batch norm, whatever is to
    be frozen later.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    found = crops(data)
    backbone = dataclasses.replace(model.backbone, norm="bn", frozen_stages=0)
    network = Classifier(backbone, int(found.classes.max()) + 1)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, RATE), weight_decay=0.05)
    variables = jax.jit(network.init, static_argnames="train")(
        jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)), train=False
    )
    course = _Course(file, f"{network} {model.pixel_mean} {model.pixel_std} {data.shapes} {steps} {seed} {BATCH}")
    state, right = course.resume((variables, optimizer.init(variables["params"])))
    step = _make_step(network, optimizer, model)
    batches = itertools.islice(_batches(found, np.random.default_rng(seed)), len(right), steps)
    try:
        for images, classes in track(batches, steps - len(right), "batches of crops seen"):
            state, correct = step(state, images, classes)
            right.append(float(correct))
            if len(right) % SAVE_EVERY == 0:
                course.save(state, right)
    except KeyboardInterrupt as error:
        done = len(right) // SAVE_EVERY * SAVE_EVERY
        raise KeyboardInterrupt(f"interrupted; the same command goes on from batch {done} of the classifier") from error
    _save(file, jax.device_get(state[0]))
    course.end()
    return float(np.mean(right[-max(steps // 10, 1) :]))


State = tuple[Any, Any]  # variables, the optimizer's state


@dataclasses.dataclass(frozen=True)
class _Course:
    """What was learned so far, in a file beside the one that is to come; that of another `recipe` is not read."""

    target: Path
    recipe: str

    @property
    def file(self) -> Path:
        return self.target.with_suffix(".unfinished")

    def resume(self, start: State) -> tuple[State, list[float]]:
        """The state that was saved, and how much of each batch was right until then; `start` where there is none."""
        try:
            content = serialization.msgpack_restore(self.file.read_bytes())
        except (OSError, ValueError):
            return start, []
        if content["recipe"] != self.recipe:
            return start, []
        print(f"{self.file}: goes on from batch {len(content['right'])}", flush=True)
        return serialization.from_state_dict(start, content["state"]), content["right"].tolist()

    def save(self, state: State, right: Sequence[float]) -> None:
        content = {
            "recipe": self.recipe,
            "state": serialization.to_state_dict(jax.device_get(state)),
            "right": np.asarray(right),
        }
        files.write_bytes(self.file, serialization.msgpack_serialize(content))

    def end(self) -> None:
        self.file.unlink(missing_ok=True)


def _make_step(
    network: Classifier, optimizer: optax.GradientTransformation, model: ModelConfig
) -> Callable[[State, Any, Any], tuple[State, jax.Array]]:
    """A step of training: the new state, and the part of the batch that the old one classified rightly."""

    def normalize(image: jax.Array) -> jax.Array:
        size = jnp.asarray(image.shape[:2])
        return image_ops.normalize(
            image, size, mean=model.pixel_mean, std=model.pixel_std, channel_order=model.channel_order
        )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, images: jax.Array, classes: jax.Array) -> tuple[State, jax.Array]:
        variables, moments = state
        x = jax.vmap(normalize)(images)

        def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, statistics = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            cost = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
            return cost.mean(), (jnp.mean(logits.argmax(-1) == classes), statistics)

        gradient, (correct, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(gradient, moments, variables["params"])
        return ({"params": optax.apply_updates(variables["params"], updates), **statistics}, moments), correct

    return step


def _batches(found: Crops, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches in a new order each epoch, half of the crops mirrored."""
    while True:
        order = rng.permutation(len(found.classes))
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[begin : begin + BATCH]
            images = found.images[rows]
            mirrored = rng.random(BATCH) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
            yield images, found.classes[rows]


def _crop(picture: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The square around a box `x y width height`; what lies beyond the picture is gray."""
    x, y, width, height = box
    side = MARGIN * max(width, height)
    scale = SIZE / side
    corner = np.array([x + width / 2 - side / 2, y + height / 2 - side / 2])
    # Of pixel centers, which lie half a pixel in.
    shift = -corner * scale + 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=(124, 116, 104))


def _save(file: Path, variables: Any) -> None:
    """The residual network alone, under torchvision's names."""
    tree = {collection: {"backbone": leaves["backbone"]} for collection, leaves in variables.items()}
    content = io.BytesIO()
    state: dict[str, Any] = dict(naming.export_state(torchvision_names.CLASSIFIER, tree))
    np.savez(content, **state)
    files.write_bytes(file, content.getvalue())
