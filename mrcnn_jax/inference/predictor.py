"""`Predictor`, the inference API: images of any size to predictions in their original pixels."""

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
from mrcnn_jax.weights import pretrained, reference_models

if TYPE_CHECKING:
    from mrcnn_jax.weights.source import WeightsSource

Image = NDArray[np.uint8] | str | os.PathLike[str]


class Predictor:
    """Detects instances in images with a model.

    Images are padded to the best of the fixed shapes `config.data.buckets`. At most two programs are compiled for a
    shape, on first use: one for batches of `config.eval.batch_size`, and one for single images left over.
    In exact mode (`config.eval.resize`) each image is processed alone, padded as in the reference implementation, and
    every padded shape compiles a program. With test-time augmentation (`config.eval.scales`, `flip`) each image is
    processed alone in several views, see `inference.tta`.
    """

    def __init__(self, config: Config, variables: Any, *, detect: detector.Detect | None = None):
        """`variables` as from `mask_rcnn.init_variables`; `config.model.num_classes` must be set.

        detect: used in place of the network, which then needs no variables.
        """
        self.config = config
        compile_detect = tta.compile_detect if config.eval.augmented else detector.compile_detect
        self._detect = detect or compile_detect(config.model, variables)

    @classmethod
    def from_checkpoint(cls, workdir: epath.PathLike, checkpoint: str | int = "latest") -> Predictor:
        """Load a checkpoint of a training run: "latest", "best", or a step. Uses averaged weights if it has them.

        Raises FileNotFoundError if there is no such checkpoint.
        """
        from mrcnn_jax.checkpoints.manager import load_variables

        return cls(*load_variables(workdir, checkpoint))

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], revision: str | None = None, *, exact: bool = True
    ) -> Predictor:
        """Load a published model by name, such as "maskrcnn_resnet50_fpn_v2", or a folder written by `mrcnn export`.

        The folder may be on the Hugging Face Hub: "hf://owner/name", or "hf://owner/name@COMMIT"; `revision` is another
        way to give the branch, tag or commit. Weights are downloaded on first use; `mrcnn weights list` shows names.
        With `exact` the detections are those of torchvision or Detectron2, see `from_torchvision`. Raises ConfigError
        for an unknown name, DownloadError, and WeightsError.
        """
        return cls._of_reference(*pretrained.load_pretrained(name, exact=exact, revision=revision))

    @classmethod
    def from_export(cls, path: str | os.PathLike[str]) -> Predictor:
        """Load programs that `mrcnn export MODEL FILE.zip` has written, with masks within their boxes.

        Raises WeightsError for a file that cannot be used.
        """
        from mrcnn_jax.inference import exported_detect

        config, detect = exported_detect.load(path)
        return cls(config, None, detect=detect)

    @classmethod
    def from_torchvision(
        cls,
        weights: WeightsSource,
        name: str = "maskrcnn_resnet50_fpn",
        *,
        exact: bool = True,
        frozen_bn_eps: float | None = None,
    ) -> Predictor:
        """Load a torchvision model by its name there, from a weights file or a state dict.

        With `exact` (exact mode) the detections are those of torchvision, and compiled programs are cached on disk;
        `exact=False` uses the buckets. The score threshold is torchvision's, 0.05. See `reference_models.load`.
        Raises ConfigError for an unknown name, WeightsError for weights that cannot be used.
        """
        return cls._from_reference(weights, "torchvision", name, exact, frozen_bn_eps)

    @classmethod
    def from_detectron2(
        cls,
        weights: WeightsSource,
        name: str = "mask_rcnn_R_50_FPN",
        *,
        exact: bool = True,
        frozen_bn_eps: float | None = None,
    ) -> Predictor:
        """Load a model of Detectron2's model zoo, as `from_torchvision`. Images are RGB, as everywhere here."""
        return cls._from_reference(weights, "detectron2", name, exact, frozen_bn_eps)

    @classmethod
    def _from_reference(
        cls,
        weights: WeightsSource,
        origin: reference_models.Origin,
        name: str,
        exact: bool,
        frozen_bn_eps: float | None,
    ) -> Predictor:
        return cls._of_reference(
            *reference_models.load(weights, origin, name, exact=exact, frozen_bn_eps=frozen_bn_eps)
        )

    @classmethod
    def _of_reference(cls, config: Config, variables: Any) -> Predictor:
        if config.eval.resize != "bucket":  # exact mode compiles many programs
            compilation_cache.enable()
        return cls(config, variables)

    def __repr__(self) -> str:
        model = self.config.model
        parts = ["boxes", *(f"{head}s" for head in ("mask", "keypoint") if getattr(model, head) is not None)]
        return f"Predictor({self.config.name}: {model.num_classes} classes, {', '.join(parts)})"

    def __call__(self, images: Iterable[Image]) -> list[Prediction]:
        """Return a prediction for each image, a uint8 RGB array (height, width, 3) or the path of an image file.

        Raises ImageError, which names the image, for another type or shape or a file that cannot be read.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            raise TypeError("Predictor takes a list of images: write predict([image]) for a single one")
        predictions = dict(self.stream(images))
        return [predictions[index] for index in range(len(predictions))]

    def stream(self, images: Iterable[Image]) -> Iterator[tuple[int, Prediction]]:
        """Yield (index in `images`, prediction) as batches are finished; reads ahead while the device works.

        Images of one shape are yielded in their order. Memory holds a few batches, however many images there are.
        """
        sizes: dict[int, tuple[int, int]] = {}

        def finish(index: int, detections: Detections, network_size: Any) -> tuple[int, Prediction]:
            return index, postprocess(detections, network_size, sizes.pop(index), self.config.model)

        return detector.detect_batches(self._detect, self._batches(images, sizes), finish)

    def detect(self, prepared: Sequence[detector.ImageBatch]) -> list[Detections]:
        """Return the detections, in NumPy, of images of one shape from `single_image.prepare`, computed as one batch.

        The first use of a shape and a number of images compiles a program.
        """
        batch = _concatenate(prepared)
        on_host = [np.asarray(field) for field in self._detect(batch.images, batch.image_sizes)]
        return [Detections(*(field[slot] for field in on_host)) for slot in range(len(prepared))]

    def _batches(self, images: Iterable[Image], sizes: dict[int, tuple[int, int]]) -> Iterator[detector.ImageBatch]:
        """Yield full batches as they fill up; stores the original sizes in `sizes`.

        The images left over of a shape are a batch with empty slots if a full batch has compiled that program, and
        batches of one otherwise. In exact mode and with test-time augmentation all are batches of one.
        """
        prepare = tta.prepare if self.config.eval.augmented else single_image.prepare
        waiting: dict[tuple[int, int], list[detector.ImageBatch]] = defaultdict(list)
        batched = set()
        for index, image in enumerate(images):
            pixels = _pixels(image, index, self.config.data.value_range)
            sizes[index] = (pixels.shape[0], pixels.shape[1])
            single = prepare(pixels, index, self.config)
            if self.config.eval.single_image:
                yield single
                continue
            shape = single.images.shape[1:3]
            pending = waiting[shape]
            pending.append(single)
            if len(pending) == self.config.eval.batch_size:
                yield _concatenate(pending)
                batched.add(shape)
                pending.clear()
        for shape, pending in waiting.items():
            if pending and shape in batched:
                empty = pending[-1]._replace(valid=np.array([False]))
                yield _concatenate(pending + [empty] * (self.config.eval.batch_size - len(pending)))
            else:
                yield from pending


def _concatenate(singles: Sequence[detector.ImageBatch]) -> detector.ImageBatch:
    return detector.ImageBatch(*(np.concatenate(field) for field in zip(*singles, strict=True)))


def read_image(path: str | os.PathLike[str], value_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Read an image file as (height, width, 3) uint8 RGB. Raises ImageError with the file and the reason.

    value_range: for images of more than 8 bits, `config.data.value_range` of the model.
    """
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{os.fspath(path)}: {file_names.describe_missing(Path(path))}") from None
    except OSError as error:
        raise ImageError(f"{os.fspath(path)}: {error.strerror or error}") from error
    pixels = image_files.decode(content, value_range=value_range)
    if pixels is None:
        raise ImageError(f"{os.fspath(path)}: {image_files.explain_decode_failure(content, value_range)}")
    return pixels


def _pixels(image: Image, index: int, value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, value_range)
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if kind.startswith("uint8") and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    raise ImageError(
        f"image {index}: expected a uint8 RGB array (height, width, 3) or a path, got {kind}{_conversion_hint(image)}"
    )


def _conversion_hint(image: Any) -> str:
    """Return how to convert common image types to uint8 RGB; empty for others."""
    if type(image).__module__.startswith("PIL."):
        return '; convert it with np.asarray(image.convert("RGB"))'
    if not isinstance(image, np.ndarray):
        return ""
    if image.ndim == 2:
        return "; convert it with np.stack([image] * 3, axis=-1)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "; drop the alpha channel with image[..., :3]"
    if image.dtype.kind == "f":
        return "; if its values are 0..1, convert it with (255 * image).round().astype(np.uint8)"
    return ""
