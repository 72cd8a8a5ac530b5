"""One batch: records decoded, augmented, scaled and written to the slots of a padded `Batch`.

A pure function of the step. Everything left to chance in an image is drawn from (seed, epoch, image id), so that it
does not matter who makes the batch, or where in it the image stands.
"""

from __future__ import annotations

import numpy as np

from mrcnn_jax.config import Config, KeypointHeadConfig
from mrcnn_jax.data.augment import random_choices
from mrcnn_jax.data.augment.copy_paste import paste
from mrcnn_jax.data.batching import BatchPlan, PlannedBatch
from mrcnn_jax.data.categories import mirrored
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.data.findings import no_masks
from mrcnn_jax.data.sample import Sample, make_sample, write
from mrcnn_jax.errors import DataError, UnreadableRecordError
from mrcnn_jax.structures import Batch, GroundTruth


class Loader:
    """step -> this process's part of the global batch. Travels to the worker processes.

    Raises DataError when the model wants masks or keypoints that the data does not have.
    """

    def __init__(self, dataset: Dataset, config: Config, plan: BatchPlan, slots: slice, *, training: bool):
        self._dataset, self._config, self._plan, self._slots, self._training = dataset, config, plan, slots, training
        self._class_of = dataset.categories.class_of()
        if training:
            _check(dataset, config)
        self._mask_size = config.data.mask_size if config.model.mask is not None and dataset.has_masks else 0
        self._reads_masks = self._mask_size > 0 or (training and config.data.augment.copy_paste > 0)
        self._flip_map = config.model.keypoint.flip_map if config.model.keypoint is not None else ()
        same = len(dataset.categories.pose.names) == config.model.num_keypoints
        self._keypoints = config.model.num_keypoints if same else 0

    def __call__(self, step: int) -> Batch:
        """The batch of `step`. The slot of an image that cannot be decoded is not valid, and empty.

        Whatever else goes wrong with an image is a DataError that names it, for it may have to leave a worker process.
        """
        planned = self.planned(step)
        batch = self._empty(planned)
        for slot in np.flatnonzero(planned.valid).tolist():
            index = int(planned.indices[slot])
            try:
                batch.valid[slot] = self._fill(batch, slot, index, planned)
            except DataError:
                raise
            except Exception as error:
                words = f"{self._dataset.name(index)}, step {step}: {type(error).__name__}: {error}"
                raise DataError(words).with_traceback(error.__traceback__) from None
        return batch

    def describe_failure(self, index: int) -> str:
        """What is wrong with image `index`, whose slot stayed empty, and what to do."""
        try:
            return self._dataset.why_undecodable(index)
        except UnreadableRecordError as error:
            return str(error)

    def planned(self, step: int) -> PlannedBatch:
        """This process's part of what is to be in the batch of `step`."""
        planned = self._plan.batch(step)
        return planned._replace(indices=planned.indices[self._slots], valid=planned.valid[self._slots])

    def _empty(self, planned: PlannedBatch) -> Batch:
        """A batch of padding."""
        count, slots, side = len(planned.indices), self._config.data.max_instances, self._mask_size
        truth = GroundTruth(
            boxes=np.zeros((count, slots, 4), np.float32),
            classes=np.zeros((count, slots), np.int32),
            masks=np.zeros((count, slots, side, side), np.uint8),
            mask_windows=np.zeros((count, slots, 4), np.float32),
            keypoints=np.zeros((count, slots, self._keypoints, 3), np.float32),
            valid=np.zeros((count, slots), bool),
        )
        images = np.zeros((count, *planned.bucket, 3), np.uint8)
        # A slot without an image says 1 x 1, so that nothing on the device divides by an empty picture.
        sizes = np.ones((count, 2), np.int32)
        return Batch(images, sizes, planned.indices.astype(np.int32), planned.valid.copy(), truth)

    def _fill(self, batch: Batch, slot: int, index: int, planned: PlannedBatch) -> bool:
        """Image `index` and its ground truth into an empty slot; False, and nothing, if it cannot be decoded."""
        sample = self._load(index, planned, batch.images[slot])
        if sample is None:
            return False
        batch.image_sizes[slot] = sample.image.shape[:2]
        write(sample, GroundTruth(*(field[slot] for field in batch.ground_truth)))
        return True

    def _load(self, index: int, planned: PlannedBatch, canvas: np.ndarray) -> Sample | None:
        """Image `index` as it goes into a batch, its pixels at the top left of `canvas` (H, W, 3)."""
        data, size = self._config.data, self._dataset.sizes[index]
        if not self._training:
            return self._apply(index, random_choices.deterministic_choices(data, size, planned.bucket), canvas)
        rng = self._generator(planned.epoch, index)
        choices = random_choices.draw(data, rng, size, planned.bucket)
        if choices.partner is None:
            return self._apply(index, choices, canvas)
        sample = self._apply(index, choices, None)
        if sample is not None:
            sample = self._paste(sample, index, int(choices.partner * len(self._dataset)), planned)
            canvas[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
        return sample

    def _paste(self, sample: Sample, index: int, partner: int, planned: PlannedBatch) -> Sample:
        """`sample`, with some instances of the image `partner` laid over it."""
        rng = self._generator(planned.epoch, index, partner)
        choices = random_choices.draw(self._config.data, rng, self._dataset.sizes[partner], planned.bucket)
        other = self._apply(partner, choices, None)
        if other is None:  # what is wrong with it is said where it has a slot of its own
            return sample
        return paste(sample, other, random_choices.draw_some(rng, len(other.boxes)))

    def _apply(self, index: int, choices: random_choices.Choices, canvas: np.ndarray | None) -> Sample | None:
        """Image `index`, decoded and as `choices` say; None if it cannot be decoded."""
        try:
            content, annotations = self._dataset.record(index)
        except UnreadableRecordError:
            return None
        # Evaluation sees the pixels that the predictor sees, which is given decoded images.
        reduced = random_choices.reduction(choices) if self._training else 1
        image = self._dataset.decode(content, reduced)
        if image is None:
            return None
        sample = make_sample(
            image,
            annotations,
            self._class_of,
            self._dataset.sizes[index],
            reduction=reduced,
            masks=self._reads_masks,
            num_keypoints=self._keypoints,
        )
        height, width = choices.scaled
        out = None if canvas is None else canvas[:height, :width]
        return random_choices.apply(choices, sample, reduced=reduced, flip_map=self._flip_map, out=out)

    def _generator(self, epoch: int, *indices: int) -> np.random.Generator:
        return random_choices.generator(self._config.train.seed, epoch, *(int(self._dataset.ids[i]) for i in indices))


def _check(dataset: Dataset, config: Config) -> None:
    """Raise DataError unless the data has what training with this configuration needs."""
    if not dataset.has_masks:
        if config.model.mask is not None:
            raise DataError(no_masks(dataset.annotations_path, dataset.problems))
        if config.data.augment.copy_paste > 0:
            raise DataError(
                f"{dataset.annotations_path}: no instance has a mask, and data.augment.copy_paste cuts instances out"
                " along theirs: set it to 0, or give the instances segmentations"
            )
    if config.model.keypoint is not None:
        _check_keypoints(dataset, config)


def _check_keypoints(dataset: Dataset, config: Config) -> None:
    """Raise DataError unless the data's keypoints are those that the model is to learn."""
    head, names = config.model.keypoint, dataset.categories.pose.names
    assert head is not None, "asked only of a model that has a keypoint head"
    if len(names) != head.num_keypoints:
        has = f"has {len(names)} keypoints" if names else "has no keypoints, or categories whose keypoints differ"
        raise DataError(
            f"{dataset.annotations_path} {has}, and the model has a head for {head.num_keypoints}: set"
            " model.keypoint.num_keypoints (and .flip_map), choose data.categories, or set model.keypoint=None"
        )
    if not dataset.has_keypoints:
        raise DataError(
            f"{dataset.annotations_path}: no instance has a labeled keypoint to learn from; label some, or set"
            " model.keypoint=None"
        )
    sides = mirrored(names)
    if sides == head.flip_map:
        return
    if sides != tuple(range(len(names))):
        raise DataError(
            f"{dataset.annotations_path} has the keypoints {', '.join(names)}, which mirrored images exchange as in"
            f" {sides}; model.keypoint.flip_map says {head.flip_map}: set it to the former"
        )
    if head.flip_map == KeypointHeadConfig.flip_map:
        raise DataError(
            f"{dataset.annotations_path} has the keypoints {', '.join(names)}, whose names do not say which are left"
            " and right, and model.keypoint.flip_map is that of COCO's 17: name them so (left_eye, right_eye), or set"
            f" model.keypoint.flip_map to what mirrored images exchange (nothing: {sides})"
        )
