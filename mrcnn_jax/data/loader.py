"""`Loader`, which decodes, augments and scales the images of one batch and writes them to a padded `Batch`.

A batch is a pure function of the step. Random augmentation of an image depends on (seed, epoch, image id) only, not on
the process that loads it or its slot in the batch.
"""

from __future__ import annotations

import numpy as np

from mrcnn_jax.config import Config, KeypointHeadConfig
from mrcnn_jax.data.augment import random_choices
from mrcnn_jax.data.augment.copy_paste import paste
from mrcnn_jax.data.batching import BatchPlan, PlannedBatch
from mrcnn_jax.data.categories import infer_flip_map
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.data.findings import no_masks_message
from mrcnn_jax.data.sample import Sample, make_sample, write_ground_truth
from mrcnn_jax.errors import DataError, UnreadableRecordError
from mrcnn_jax.structures import Batch, GroundTruth


class Loader:
    """Callable step -> this process's part of the global batch. Pickled for worker processes.

    Raises DataError for training if the dataset lacks the masks or keypoints that the model needs.
    """

    def __init__(self, dataset: Dataset, config: Config, plan: BatchPlan, slots: slice, *, training: bool):
        self._dataset, self._config, self._plan, self._slots, self._training = dataset, config, plan, slots, training
        self._class_of = dataset.categories.class_of()
        if training:
            _check_dataset(dataset, config)
        self._mask_size = config.data.mask_size if config.model.mask is not None and dataset.has_masks else 0
        self._reads_masks = self._mask_size > 0 or (training and config.data.augment.copy_paste > 0)
        self._flip_map = config.model.keypoint.flip_map if config.model.keypoint is not None else ()
        same_count = len(dataset.categories.keypoint_schema.names) == config.model.num_keypoints
        self._num_keypoints = config.model.num_keypoints if same_count else 0

    def __call__(self, step: int) -> Batch:
        """Return the batch of `step`; the slot of an image that cannot be decoded is empty and not valid.

        Raises DataError for any other error of an image: it names the image, and can be pickled by a worker process.
        """
        planned = self.planned(step)
        batch = self._empty_batch(planned)
        for slot in np.flatnonzero(planned.valid).tolist():
            index = int(planned.indices[slot])
            try:
                sample = self._load(index, planned, batch.images[slot])
                batch.valid[slot] = sample is not None
                if sample is not None:
                    batch.image_sizes[slot] = sample.image.shape[:2]
                    write_ground_truth(sample, GroundTruth(*(field[slot] for field in batch.ground_truth)))
            except DataError:
                raise
            except Exception as error:
                message = f"{self._dataset.label(index)}, step {step}: {type(error).__name__}: {error}"
                raise DataError(message).with_traceback(error.__traceback__) from None
        return batch

    def describe_failure(self, index: int) -> str:
        """Return why image `index` could not be loaded, and what to do."""
        try:
            return self._dataset.explain_decode_failure(index)
        except UnreadableRecordError as error:
            return str(error)

    def planned(self, step: int) -> PlannedBatch:
        """Return this process's part of the plan for the batch of `step`."""
        planned = self._plan.batch(step)
        return planned._replace(indices=planned.indices[self._slots], valid=planned.valid[self._slots])

    def _empty_batch(self, planned: PlannedBatch) -> Batch:
        """Return a batch of padding."""
        count, slots, side = len(planned.indices), self._config.data.max_instances, self._mask_size
        ground_truth = GroundTruth(
            boxes=np.zeros((count, slots, 4), np.float32),
            classes=np.zeros((count, slots), np.int32),
            masks=np.zeros((count, slots, side, side), np.uint8),
            mask_windows=np.zeros((count, slots, 4), np.float32),
            keypoints=np.zeros((count, slots, self._num_keypoints, 3), np.float32),
            valid=np.zeros((count, slots), bool),
        )
        images = np.zeros((count, *planned.bucket, 3), np.uint8)
        # The size of an empty slot is 1 x 1, so that the model does not divide by 0.
        sizes = np.ones((count, 2), np.int32)
        return Batch(images, sizes, planned.indices.astype(np.int32), planned.valid.copy(), ground_truth)

    def _load(self, index: int, planned: PlannedBatch, canvas: np.ndarray) -> Sample | None:
        """Return image `index` as augmented for the batch, its pixels at the top left of `canvas` (H, W, 3)."""
        data, size = self._config.data, self._dataset.sizes[index]
        if self._training:
            choices = random_choices.draw_choices(data, self._generator(planned.epoch, index), size, planned.bucket)
        else:
            choices = random_choices.deterministic_choices(data, size, planned.bucket)
        if choices.partner is None:
            return self._apply(index, choices, canvas)
        sample = self._apply(index, choices, None)
        if sample is not None:
            sample = self._paste(sample, index, int(choices.partner * len(self._dataset)), planned)
            canvas[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
        return sample

    def _paste(self, sample: Sample, index: int, partner: int, planned: PlannedBatch) -> Sample:
        """Paste random instances of the image `partner` onto `sample`."""
        rng = self._generator(planned.epoch, index, partner)
        choices = random_choices.draw_choices(self._config.data, rng, self._dataset.sizes[partner], planned.bucket)
        other = self._apply(partner, choices, None)
        if other is None:  # reported when this image is loaded for its own slot
            return sample
        return paste(sample, other, random_choices.draw_pasted_instances(rng, len(other.boxes)))

    def _apply(self, index: int, choices: random_choices.Choices, canvas: np.ndarray | None) -> Sample | None:
        """Return image `index`, decoded and augmented as `choices` say; None if it cannot be decoded."""
        try:
            content, annotations = self._dataset.record(index)
        except UnreadableRecordError:
            return None
        # Evaluation decodes at full size, so that its pixels are those of the predictor.
        reduction = random_choices.decode_reduction(choices) if self._training else 1
        image = self._dataset.decode(content, reduction)
        if image is None:
            return None
        sample = make_sample(
            image,
            annotations,
            self._class_of,
            self._dataset.sizes[index],
            reduction=reduction,
            masks=self._reads_masks,
            num_keypoints=self._num_keypoints,
        )
        height, width = choices.scaled
        out = None if canvas is None else canvas[:height, :width]
        return random_choices.apply_choices(choices, sample, reduction=reduction, flip_map=self._flip_map, out=out)

    def _generator(self, epoch: int, *indices: int) -> np.random.Generator:
        return random_choices.image_generator(
            self._config.train.seed, epoch, *(int(self._dataset.ids[i]) for i in indices)
        )


def _check_dataset(dataset: Dataset, config: Config) -> None:
    """Raise DataError unless the dataset has the masks and keypoints that this configuration needs."""
    if not dataset.has_masks:
        if config.model.mask is not None:
            raise DataError(no_masks_message(dataset.annotations_path, dataset.problems))
        if config.data.augment.copy_paste > 0:
            raise DataError(
                f"{dataset.annotations_path}: no instance has a mask, which data.augment.copy_paste needs; set it to 0,"
                " or add segmentations"
            )
    if config.model.keypoint is not None:
        _check_keypoints(dataset, config)


def _check_keypoints(dataset: Dataset, config: Config) -> None:
    """Raise DataError unless the dataset has the keypoints of the model, with the same flip map."""
    head, names, path = config.model.keypoint, dataset.categories.keypoint_schema.names, dataset.annotations_path
    assert head is not None, "the model has a keypoint head"
    if len(names) != head.num_keypoints:
        has = f"has {len(names)} keypoints" if names else "has no keypoints, or categories with different keypoints"
        raise DataError(
            f"{path} {has}, and model.keypoint.num_keypoints={head.num_keypoints}; set it and model.keypoint.flip_map"
            " to fit the data, select data.categories, or set model.keypoint=None"
        )
    if not dataset.has_keypoints:
        raise DataError(
            f"{path}: no instance has a labeled keypoint to train on; label keypoints, or set model.keypoint=None"
        )
    flip_map = infer_flip_map(names)
    if flip_map == head.flip_map:
        return
    if flip_map != tuple(range(len(names))):
        raise DataError(
            f"{path}: model.keypoint.flip_map={head.flip_map} does not fit the keypoints {', '.join(names)}; set"
            f" model.keypoint.flip_map={flip_map}"
        )
    if head.flip_map == KeypointHeadConfig.flip_map:
        raise DataError(
            f"{path}: the names of the keypoints {', '.join(names)} do not show which are left and right, and"
            " model.keypoint.flip_map is that of COCO's 17 keypoints; rename them (left_eye, right_eye), or set"
            f" model.keypoint.flip_map ({flip_map} if a mirror image exchanges none)"
        )
