"""From the network's detections to a `Prediction` in the pixels of the original image. Host side, NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.inference.paste import PasteRule, Region, encode, paste
from mrcnn_jax.structures import Detections

if TYPE_CHECKING:
    import supervision


_NAMED = 6  # instances that `repr` names


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one image, best first. n instances, S side of a predicted mask, K keypoints.

    `len`, indices, slices and loops go over the instances: each is a Prediction of one.

    Masks are kept as the small probabilities that the network gave: a hundred full masks of a 12-megapixel photograph
    are 1.2 GB. They are pasted when asked for.
    """

    image_size: tuple[int, int]  # height and width of the original image
    boxes: NDArray[np.float32]  # (n, 4), x0 y0 x1 y1 in pixels of the original image
    scores: NDArray[np.float32]  # (n,), 0..1
    labels: NDArray[np.int32]  # (n,), 1..C
    category_ids: NDArray[np.int64]  # (n,), the data set's ids
    names: tuple[str, ...]  # n category names
    mask_probabilities: NDArray[np.float32] | None  # (n, S, S), each within its box; None: the model has no masks
    paste_rule: PasteRule = "detectron2"
    keypoints: NDArray[np.float32] | None = None  # (n, K, 3), x and y as of boxes, score; None: the model has none
    keypoint_score: Literal["probability", "logit"] = (
        "probability"  # what a keypoint's score is, see KeypointHeadConfig
    )
    keypoint_names: tuple[str, ...] = ()  # K, or none where they are not known
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints that pictures join with a line
    full: bool = False  # of as many detections as the model gives of an image: of more objects it found only so many

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        named = [f"{name} {score:.2f}" for name, score in zip(self.names[:_NAMED], self.scores, strict=False)]
        if len(self) > _NAMED:
            named.append(f"{len(self) - _NAMED} more")
        height, width = self.image_size
        return f"Prediction({height}x{width}: {', '.join(named) or 'nothing found'})"

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, selection: int | slice | NDArray[Any]) -> Prediction:
        """The instances chosen by an index, a slice, a bool array (n,) or an array of indices."""
        chosen = np.atleast_1d(np.arange(len(self))[selection])
        return dataclasses.replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            category_ids=self.category_ids[chosen],
            names=tuple(self.names[i] for i in chosen),
            mask_probabilities=None if self.mask_probabilities is None else self.mask_probabilities[chosen],
            keypoints=None if self.keypoints is None else self.keypoints[chosen],
        )

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """Bool masks (n, height, width), pasted anew at each access; None when the model has no masks."""
        if self.mask_probabilities is None:
            return None
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        for mask, region in zip(masks, self.regions(), strict=True):
            height, width = region.pixels.shape
            mask[region.top : region.top + height, region.left : region.left + width] = region.pixels
        return masks

    def regions(self) -> list[Region]:
        """The bool masks cut to their boxes: what `masks` holds, in little memory. Empty when there are no masks."""
        if self.mask_probabilities is None:
            return []
        return [
            paste(mask, box, self.image_size, self.paste_rule)
            for mask, box in zip(self.mask_probabilities, self.boxes, strict=True)
        ]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result records: `bbox` as x y width height, `segmentation` as compressed run lengths, `keypoints`.

        COCO's keypoints name pixels, whose middle lies 1/2 further: 1/2 is taken away that `data.transforms` added.
        """
        corners = self.boxes.astype(float)
        sides = corners[:, 2:] - corners[:, :2]
        records: list[dict[str, Any]] = [
            {
                "image_id": int(image_id),
                "category_id": int(self.category_ids[i]),
                "bbox": [*corners[i, :2].tolist(), *sides[i].tolist()],
                "score": float(self.scores[i]),
            }
            for i in range(len(self))
        ]
        for record, segmentation in zip(records, encode(self.regions(), self.image_size), strict=False):
            record["segmentation"] = segmentation
        if self.keypoints is not None:
            pixels = self.keypoints.astype(float) - [0.5, 0.5, 0]
            for record, points in zip(records, pixels, strict=True):
                record["keypoints"] = points.ravel().tolist()
        return records

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`; `class_id` is the label 1..C, masks are full size.

        Keypoints (n, K, 3) are in `data["keypoints"]`.
        """
        import supervision

        data: dict[str, Any] = {"class_name": np.array(self.names, dtype=str)}
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints

        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data=data,
        )


def postprocess(
    detections: Detections, network_size: NDArray[np.integer], original_size: tuple[int, int], model: ModelConfig
) -> Prediction:
    """Detections of ONE image (NumPy, D slots) as a `Prediction` in an image of `original_size`.

    `network_size` is height and width of the picture inside the padded network image. Boxes and keypoints are scaled
    by the true ratio of each axis; boxes are clipped, and dropped when they are left without area (Detectron2,
    postprocessing.py).
    """
    height, width = original_size
    scale = np.array([width, height], dtype=np.float32) / np.asarray(network_size, dtype=np.float32)[::-1]
    boxes = np.clip(detections.boxes * np.tile(scale, 2), 0, np.array([width, height] * 2, dtype=np.float32))
    kept = detections.valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = detections.classes[kept].astype(np.int32)
    ids, names = categories(model)
    return Prediction(
        image_size=(int(height), int(width)),
        boxes=boxes[kept].astype(np.float32),
        scores=detections.scores[kept].astype(np.float32),
        labels=labels,
        category_ids=np.array(ids, dtype=np.int64)[labels - 1],
        names=tuple(names[label - 1] for label in labels),
        mask_probabilities=detections.masks[kept].astype(np.float32) if model.mask is not None else None,
        paste_rule=model.mask.paste if model.mask is not None else "detectron2",
        keypoints=detections.keypoints[kept] * np.append(scale, np.float32(1)) if model.keypoint is not None else None,
        keypoint_score=model.keypoint.score if model.keypoint is not None else "probability",
        keypoint_names=model.keypoint_names,
        skeleton=model.skeleton,
        full=bool(np.count_nonzero(detections.valid) >= model.box.max_detections),
    )


def categories(model: ModelConfig) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names of the model's classes 1..C; a model that was given none counts from 1."""
    ids = model.category_ids or tuple(range(1, model.num_classes + 1))
    return ids, model.category_names or tuple(f"class {i}" for i in ids)
