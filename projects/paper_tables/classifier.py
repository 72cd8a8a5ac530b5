"""Pretraining of the small backbones: classification of single objects, in place of ImageNet.

All rows of a table start from these weights, as the paper's do from an ImageNet classifier. Pretraining uses no RoIs,
so it favors no RoI operator. Weights are saved under torchvision's names, which `config.init` can load.
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

SIZE = 64  # side of a crop in pixels
MARGIN = 1.25  # side of a crop, relative to the longer side of the object's box
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
SAVE_EVERY = 50  # steps


class Crops(NamedTuple):
    """Image crops of single objects."""

    images: np.ndarray  # (n, SIZE, SIZE, 3) uint8 RGB
    classes: np.ndarray  # (n,) int32, 0..C - 1


class Classifier(nn.Module):
    """A ResNet classifier: normalized images (B, S, S, 3) -> logits (B, C)."""

    config: BackboneConfig
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = make_norm("bn", self.config.norm_eps)
        assert norm is not None
        stages = ResNet(self.config, norm, name="backbone")(x, train=train)
        return Dense(self.classes, nn.initializers.normal(0.01), name="logits")(stages[-1].mean((1, 2)))


def load_crops(data: DataConfig) -> Crops:
    """Crop every object of the training split, with a margin, and resize it to SIZE."""
    dataset = load_split(data, "train")
    labels = {category: label for label, category in enumerate(dataset.categories.ids)}
    images, classes = [], []
    for index in range(len(dataset)):
        content, annotations = dataset.record(index)
        image = dataset.decode(content)
        assert image is not None, dataset.name(index)
        for annotation in annotations:
            images.append(_crop(image, annotation["bbox"]))
            classes.append(labels[annotation["category_id"]])
    return Crops(np.stack(images), np.asarray(classes, np.int32))


def train(file: Path, model: ModelConfig, data: DataConfig, *, steps: int, seed: int = 0) -> float:
    """Train the backbone of `model` as a classifier on `steps` batches of crops, and write it to `file` (.npz).

    Returns the training accuracy over the last tenth of the batches. After an interruption, the same call resumes from
    a file next to `file`. All stages are trained, with batch norm, whether or not `model` freezes them.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    crops = load_crops(data)
    backbone = dataclasses.replace(model.backbone, norm="bn", frozen_stages=0)
    network = Classifier(backbone, int(crops.classes.max()) + 1)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, LEARNING_RATE), weight_decay=0.05)
    variables = jax.jit(network.init, static_argnames="train")(
        jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)), train=False
    )
    progress = _ClassifierProgress(
        file, f"{network} {model.pixel_mean} {model.pixel_std} {data.shapes} {steps} {seed} {BATCH_SIZE}"
    )
    state, accuracies = progress.resume((variables, optimizer.init(variables["params"])))
    step = _make_step(network, optimizer, model)
    batches = itertools.islice(_batches(crops, np.random.default_rng(seed)), len(accuracies), steps)
    try:
        for images, classes in track(batches, steps - len(accuracies), "batches of crops seen"):
            state, accuracy = step(state, images, classes)
            accuracies.append(float(accuracy))
            if len(accuracies) % SAVE_EVERY == 0:
                progress.save(state, accuracies)
    except KeyboardInterrupt as error:
        done = len(accuracies) // SAVE_EVERY * SAVE_EVERY
        raise KeyboardInterrupt(f"interrupted; the same command resumes at batch {done} of the classifier") from error
    _save(file, jax.device_get(state[0]))
    progress.remove()
    return float(np.mean(accuracies[-max(steps // 10, 1) :]))


State = tuple[Any, Any]  # variables, optimizer state


@dataclasses.dataclass(frozen=True)
class _ClassifierProgress:
    """The saved state of an unfinished pretraining, next to its output file. Ignored if `recipe` differs."""

    target: Path
    recipe: str

    @property
    def file(self) -> Path:
        return self.target.with_suffix(".unfinished")

    def resume(self, start: State) -> tuple[State, list[float]]:
        """Return the saved state and the accuracies of the batches so far, or `start` if nothing is saved."""
        try:
            content = serialization.msgpack_restore(self.file.read_bytes())
        except (OSError, ValueError):
            return start, []
        if content["recipe"] != self.recipe:
            return start, []
        print(f"{self.file}: resuming at batch {len(content['right'])}", flush=True)
        return serialization.from_state_dict(start, content["state"]), content["right"].tolist()

    def save(self, state: State, accuracies: Sequence[float]) -> None:
        content = {
            "recipe": self.recipe,
            "state": serialization.to_state_dict(jax.device_get(state)),
            "right": np.asarray(accuracies),
        }
        files.write_bytes(self.file, serialization.msgpack_serialize(content))

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


def _make_step(
    network: Classifier, optimizer: optax.GradientTransformation, model: ModelConfig
) -> Callable[[State, Any, Any], tuple[State, jax.Array]]:
    """Return the training step: (state, images, classes) -> (new state, accuracy before the update)."""

    def normalize(image: jax.Array) -> jax.Array:
        size = jnp.asarray(image.shape[:2])
        return image_ops.normalize(
            image, size, mean=model.pixel_mean, std=model.pixel_std, channel_order=model.channel_order
        )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, images: jax.Array, classes: jax.Array) -> tuple[State, jax.Array]:
        variables, opt_state = state
        x = jax.vmap(normalize)(images)

        def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, statistics = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            cost = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
            return cost.mean(), (jnp.mean(logits.argmax(-1) == classes), statistics)

        gradients, (accuracy, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(gradients, opt_state, variables["params"])
        return ({"params": optax.apply_updates(variables["params"], updates), **statistics}, opt_state), accuracy

    return step


def _batches(crops: Crops, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield shuffled batches forever, with half of the crops mirrored."""
    while True:
        order = rng.permutation(len(crops.classes))
        for begin in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            rows = order[begin : begin + BATCH_SIZE]
            images = crops.images[rows]
            mirrored = rng.random(BATCH_SIZE) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
            yield images, crops.classes[rows]


def _crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Crop the square around a box `x y width height`, with gray outside of the image."""
    x, y, width, height = box
    side = MARGIN * max(width, height)
    scale = SIZE / side
    corner = np.array([x + width / 2 - side / 2, y + height / 2 - side / 2])
    # cv2 transforms the coordinates of pixel centers, which are at half a pixel.
    shift = -corner * scale + 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=(124, 116, 104))


def _save(file: Path, variables: Any) -> None:
    """Write the backbone under torchvision's names."""
    tree = {collection: {"backbone": leaves["backbone"]} for collection, leaves in variables.items()}
    content = io.BytesIO()
    state: dict[str, Any] = dict(naming.export_state(torchvision_names.CLASSIFIER, tree))
    np.savez(content, **state)
    files.write_bytes(file, content.getvalue())
