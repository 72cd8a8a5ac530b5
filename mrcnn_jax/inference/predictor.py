"""`Predictor`: images of any size in, predictions in the original pixels out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from numpy.typing import NDArray

from mrcnn_jax.config import Config
from mrcnn_jax.data import file_names, image_files
from mrcnn_jax.errors import ImageError
from mrcnn_jax.inference import detector, single_image, tta
from mrcnn_jax.inference.postprocess import Prediction, postprocess
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.structures import Detections
from mrcnn_jax.weights import reference_models

if TYPE_CHECKING:
    from mrcnn_jax.weights.source import Weights

Image = NDArray[np.uint8] | str | os.PathLike[str]


class Predictor:
    """Runs a model on images. Each image goes into the fixed shape (`config.data.buckets`) that suits it best.

    Compiles at most two programs for a shape, on its first use: one for batches (`config.eval.batch_size`) and one for
    single images, where there are too few for a batch.
    In exact mode (`config.eval.resize`) an image is alone, in the shape that the peer would give it; there is one
    program for each of these shapes. With test-time augmentation (`config.eval.scales`, `flip`) it is alone in several
    views, see `evaluation.augmented`.
    """

    def __init__(self, config: Config, variables: Any):
        """`variables` as `models.rcnn.init_variables` makes them; `config.model` must know its number of classes."""
        self.config = config
        compiled = tta.compile_detect if config.eval.augmented else detector.compile_detect
        self._detect = compiled(config.model, variables)

    @classmethod
    def from_checkpoint(cls, workdir: epath.PathLike, checkpoint: str | int = "latest") -> Predictor:
        """A checkpoint of a run of train.py: "latest", "best", or that of a step; averaged weights if it has them.

        Raises FileNotFoundError when there is none.
        """
        from mrcnn_jax.checkpoints.manager import load_variables

        return cls(*load_variables(workdir, checkpoint))

    @classmethod
    def from_torchvision(
        cls,
        weights: Weights,
        name: str = "maskrcnn_resnet50_fpn",
        *,
        exact: bool = True,
        frozen_bn_eps: float | None = None,
    ) -> Predictor:
        """A model of torchvision: a file of its weights, or a state dict, and its name there. See `peer_models.load`.

        By default each image gives the peer's own detections: it is alone in a shape of its own, and the compiled
        programs are kept on disk. `exact=False` uses the buckets. Scores are never below the peer's threshold, .05.
        Raises ConfigError for an unknown name, WeightsError for weights that cannot be used.
        """
        return cls._of_peer(weights, "torchvision", name, exact, frozen_bn_eps)

    @classmethod
    def from_detectron2(
        cls,
        weights: Weights,
        name: str = "mask_rcnn_R_50_FPN",
        *,
        exact: bool = True,
        frozen_bn_eps: float | None = None,
    ) -> Predictor:
        """A model of Detectron2's zoo, as `from_torchvision`. Images are RGB here too."""
        return cls._of_peer(weights, "detectron2", name, exact, frozen_bn_eps)

    @classmethod
    def _of_peer(
        cls, weights: Weights, peer: reference_models.Origin, name: str, exact: bool, frozen_bn_eps: float | None
    ) -> Predictor:
        config, variables = reference_models.load(weights, peer, name, exact=exact, frozen_bn_eps=frozen_bn_eps)
        if exact:
            compilation_cache.enable()
        return cls(config, variables)

    def __repr__(self) -> str:
        model = self.config.model
        parts = ["boxes", *(f"{head}s" for head in ("mask", "keypoint") if getattr(model, head) is not None)]
        return f"Predictor({self.config.name}: {model.num_classes} classes, {', '.join(parts)})"

    def __call__(self, images: Iterable[Image]) -> list[Prediction]:
        """Predictions for uint8 RGB arrays (height, width, 3) or paths of image files, in the order of the input.

        Raises ImageError, naming the image, for one of another type or shape or a file that cannot be read.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            raise TypeError("Predictor takes a list of images: write predict([image]) for a single one")
        found = dict(self.stream(images))
        return [found[index] for index in range(len(found))]

    def stream(self, images: Iterable[Image]) -> Iterator[tuple[int, Prediction]]:
        """Yield (position in `images`, prediction) as batches get done; reads on while the device works.

        Images of one shape come in their order. Holds a few batches at a time, however many images there are.
        """
        sizes: dict[int, tuple[int, int]] = {}

        def finish(index: int, detections: Detections, network_size: Any) -> tuple[int, Prediction]:
            return index, postprocess(detections, network_size, sizes.pop(index), self.config.model)

        return detector.run(self._detect, self._batches(images, sizes), finish)

    def _batches(self, images: Iterable[Image], sizes: dict[int, tuple[int, int]]) -> Iterator[detector.Images]:
        """Whole batches as they fill up; notes original sizes.

        What is left of a shape is a batch with empty slots if there was a whole one, whose program is compiled; else it
        goes one by one. All are alone in exact mode and with test-time augmentation.
        """
        prepare = tta.prepare if self.config.eval.augmented else single_image.prepare
        waiting: dict[tuple[int, int], list[detector.Images]] = defaultdict(list)
        batched = set()
        for index, image in enumerate(images):
            pixels = _pixels(image, index, self.config.data.value_range)
            sizes[index] = (pixels.shape[0], pixels.shape[1])
            single = prepare(pixels, index, self.config)
            if self.config.eval.single_image:
                yield single
                continue
            shape = single.images.shape[1:3]
            shelf = waiting[shape]
            shelf.append(single)
            if len(shelf) == self.config.eval.batch_size:
                yield _joined(shelf)
                batched.add(shape)
                shelf.clear()
        for shape, shelf in waiting.items():
            if shelf and shape in batched:
                empty = shelf[-1]._replace(valid=np.array([False]))
                yield _joined(shelf + [empty] * (self.config.eval.batch_size - len(shelf)))
            else:
                yield from shelf


def _joined(singles: Sequence[detector.Images]) -> detector.Images:
    return detector.Images(*(np.concatenate(field) for field in zip(*singles, strict=True)))


def read_image(path: str | os.PathLike[str], value_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Pixels of an image file, (height, width, 3) uint8 RGB. Raises ImageError naming the file and the reason.

    value_range: of images of more than 8 bits, `config.data.value_range` of the model that is to see them.
    """
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{os.fspath(path)}: {file_names.missing(Path(path))}") from None
    except OSError as error:
        raise ImageError(f"{os.fspath(path)}: {error.strerror or error}") from error
    pixels = image_files.decode(content, value_range=value_range)
    if pixels is None:
        raise ImageError(f"{os.fspath(path)}: {image_files.explain(content, value_range)}")
    return pixels


def _pixels(image: Image, index: int, value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, value_range)
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if kind.startswith("uint8") and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    raise ImageError(
        f"image {index}: expected a uint8 RGB array (height, width, 3) or a path, got {kind}{_advice(image)}"
    )


def _advice(image: Any) -> str:
    """How to make an image of what people have instead."""
    if type(image).__module__.startswith("PIL."):
        return '; np.asarray(image.convert("RGB")) is one'
    if not isinstance(image, np.ndarray):
        return ""
    if image.ndim == 2:
        return "; np.stack([image] * 3, axis=-1) has the three channels"
    if image.ndim == 3 and image.shape[2] == 4:
        return "; image[..., :3] is it without transparency"
    if image.dtype.kind == "f":
        return "; (255 * image).round().astype(np.uint8) is it if its values are 0..1"
    return ""
