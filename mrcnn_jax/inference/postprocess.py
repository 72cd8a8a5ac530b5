"""Postprocessing: detections of the network as a `Prediction` in pixels of the original image. NumPy, on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import ModelConfig, PasteRule, ScoreRule
from mrcnn_jax.inference.paste import Region, encode_rle, paste_mask
from mrcnn_jax.structures import Detections

if TYPE_CHECKING:
    import supervision


_MAX_IN_REPR = 6  # instances listed by `repr`


@dataclass(frozen=True, eq=False)
class Prediction:
    """The instances detected in one image, best score first.

    n instances, S side of a predicted mask, K keypoints. `len`, indexing, slicing and iteration are over instances; an
    item is a Prediction of one instance.

    Masks are stored as the network's probabilities and pasted on access: a hundred full masks of a 12-megapixel image
    take 1.2 GB.
    """

    image_size: tuple[int, int]  # height and width of the original image
    boxes: NDArray[np.float32]  # (n, 4), x0 y0 x1 y1 in pixels of the original image
    scores: NDArray[np.float32]  # (n,), 0..1
    labels: NDArray[np.int32]  # (n,), 1..C
    category_ids: NDArray[np.int64]  # (n,), the dataset's ids
    names: tuple[str, ...]  # n category names
    mask_probabilities: NDArray[np.float32] | None  # (n, S, S), each within its box; None without masks
    paste_rule: PasteRule = "detectron2"
    keypoints: NDArray[np.float32] | None = None  # (n, K, 3): x, y, score; None without keypoints
    keypoint_score: ScoreRule = "probability"  # see `KeypointHeadConfig`
    keypoint_names: tuple[str, ...] = ()  # K, or none where unknown
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints that overlays connect
    full: bool = False  # the model reached `max_detections`, so that further objects may be missing

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        named = [f"{name} {score:.2f}" for name, score in zip(self.names[:_MAX_IN_REPR], self.scores, strict=False)]
        if len(self) > _MAX_IN_REPR:
            named.append(f"{len(self) - _MAX_IN_REPR} more")
        height, width = self.image_size
        return f"Prediction({height}x{width}: {', '.join(named) or 'nothing found'})"

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, selection: int | slice | NDArray[Any]) -> Prediction:
        """Return the instances selected by an index, a slice, a bool array (n,) or an array of indices."""
        indices = np.atleast_1d(np.arange(len(self))[selection])
        return dataclasses.replace(
            self,
            boxes=self.boxes[indices],
            scores=self.scores[indices],
            labels=self.labels[indices],
            category_ids=self.category_ids[indices],
            names=tuple(self.names[i] for i in indices),
            mask_probabilities=None if self.mask_probabilities is None else self.mask_probabilities[indices],
            keypoints=None if self.keypoints is None else self.keypoints[indices],
        )

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """Bool masks (n, height, width), pasted at each access; None without masks."""
        if self.mask_probabilities is None:
            return None
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        for mask, region in zip(masks, self.regions(), strict=True):
            height, width = region.pixels.shape
            mask[region.top : region.top + height, region.left : region.left + width] = region.pixels
        return masks

    def regions(self) -> list[Region]:
        """Return the bool masks cropped to their boxes, in less memory than `masks`; empty without masks."""
        if self.mask_probabilities is None:
            return []
        return [
            paste_mask(mask, box, self.image_size, self.paste_rule)
            for mask, box in zip(self.mask_probabilities, self.boxes, strict=True)
        ]

    def to_coco(self, image_id: int, *, keypoint_offset: float = 0.5) -> list[dict[str, Any]]:
        """Return COCO result records with `bbox`, `segmentation` (compressed run lengths) and `keypoints`.

        COCO's keypoints are pixel indices; the pixel's center, used elsewhere, is `keypoint_offset` further, which is
        subtracted. torchvision's weights predict pixel indices: 0.
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
        for record, segmentation in zip(records, encode_rle(self.regions(), self.image_size), strict=False):
            record["segmentation"] = segmentation
        if self.keypoints is not None:
            pixels = self.keypoints.astype(float) - [keypoint_offset, keypoint_offset, 0]
            for record, points in zip(records, pixels, strict=True):
                record["keypoints"] = points.ravel().tolist()
        return records

    def to_supervision(self) -> supervision.Detections:
        """Return `supervision.Detections` with full-size masks and the labels 1..C as `class_id`.

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
    """Convert the detections of one image (NumPy, D slots) to a `Prediction` in an image of `original_size`.

    `network_size` is the height and width of the resized image before padding. Boxes and keypoints are scaled by the
    ratio of each axis; boxes are clipped, and those without area are dropped (Detectron2, postprocessing.py).
    """
    height, width = original_size
    scale = np.array([width, height], dtype=np.float32) / np.asarray(network_size, dtype=np.float32)[::-1]
    boxes = np.clip(detections.boxes * np.tile(scale, 2), 0, np.array([width, height] * 2, dtype=np.float32))
    keep = detections.valid & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = detections.classes[keep].astype(np.int32)
    ids, names = categories(model)
    return Prediction(
        image_size=(int(height), int(width)),
        boxes=boxes[keep].astype(np.float32),
        scores=detections.scores[keep].astype(np.float32),
        labels=labels,
        category_ids=np.array(ids, dtype=np.int64)[labels - 1],
        names=tuple(names[label - 1] for label in labels),
        mask_probabilities=detections.masks[keep].astype(np.float32) if model.mask is not None else None,
        paste_rule=model.mask.paste if model.mask is not None else "detectron2",
        keypoints=detections.keypoints[keep] * np.append(scale, np.float32(1)) if model.keypoint is not None else None,
        keypoint_score=model.keypoint.score if model.keypoint is not None else "probability",
        keypoint_names=model.keypoint_names,
        skeleton=model.skeleton,
        full=bool(np.count_nonzero(detections.valid) >= model.box.max_detections),
    )


def categories(model: ModelConfig) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return ids and names of the model's classes 1..C; by default the ids 1..C and names made from them."""
    ids = model.category_ids or tuple(range(1, model.num_classes + 1))
    return ids, model.category_names or tuple(f"class {i}" for i in ids)
