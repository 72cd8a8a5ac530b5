"""Worker of `benchmarks.data` with torchvision's reference pipeline for detection.

Needs torch, torchvision and pycocotools, but not mrcnn_jax. Follows torchvision's references/detection: `CocoDetection`
with Pillow, `ConvertCocoPolysToMask` (full-frame masks), `RandomHorizontalFlip`, `PILToTensor`, `ToDtype(float,
scale=True)`, batches of one group of aspect ratios, `DataLoader`. The part of the model that makes padded batches of
800 pixels, `GeneralizedRCNNTransform(800, 1333)`, runs in the worker processes of the loader, so that both pipelines
deliver the same batches. `--unscaled` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.data_protocol import serve, set_cores

# torchvision's compiled operators (such as NMS) are not needed. If they cannot be loaded, because torchvision was built
# for another torch, registering their shapes would fail.
torch.library.register_fake = lambda *_, **__: lambda function: function

from torchvision.models.detection.transform import GeneralizedRCNNTransform  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402


class CocoImages(torch.utils.data.Dataset):
    """`CocoDetection` with the transforms of the reference training."""

    def __init__(self, folder: Path, annotations: str, images: str):
        content = json.loads((folder / annotations).read_text())
        self._images, self._folder = content["images"], folder / images
        self._annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self._images}
        for annotation in content["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)
        self.wide = [image["width"] >= image["height"] for image in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        entry = self._images[index]
        image = Image.open(self._folder / entry["file_name"]).convert("RGB")
        target = convert(image, self._annotations[entry["id"]])
        if torch.rand(1) < 0.5:
            image = F.hflip(image)
            target["boxes"][:, [0, 2]] = image.size[0] - target["boxes"][:, [2, 0]]
            target["masks"] = target["masks"].flip(-1)
        return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), target


def convert(image: Image.Image, annotations: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Convert annotations like `ConvertCocoPolysToMask`."""
    width, height = image.size
    instances = [a for a in annotations if a["iscrowd"] == 0]
    boxes = torch.as_tensor([a["bbox"] for a in instances], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    classes = torch.tensor([a["category_id"] for a in instances], dtype=torch.int64)
    masks = rasterize([a["segmentation"] for a in instances], height, width)
    keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return {"boxes": boxes[keep], "labels": classes[keep], "masks": masks[keep]}


def rasterize(segmentations: list[list[list[float]]], height: int, width: int) -> torch.Tensor:
    """Return full-image masks (n, height, width), like `convert_coco_poly_to_mask`."""
    masks = []
    for polygons in segmentations:
        bitmaps = coco_mask.decode(coco_mask.frPyObjects(polygons, height, width))
        masks.append(torch.as_tensor(bitmaps, dtype=torch.uint8).any(dim=2))
    return torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8)


class Collate:
    """Collates like the reference training, then resizes, normalizes and pads like the first part of the model."""

    def __init__(self, scaled: bool):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self._transform = GeneralizedRCNNTransform(800, 1333, mean, std) if scaled else None

    def __call__(self, batch: list[Any]) -> Any:
        images, targets = zip(*batch, strict=True)
        if self._transform is None:
            return images, targets
        padded, targets = self._transform(list(images), list(targets))
        return padded.tensors, padded.image_sizes, targets


class GroupedBatches(torch.utils.data.Sampler):
    """Infinite `GroupedBatchSampler`: batches of wide or of high images, in random order."""

    def __init__(self, wide: list[bool], batch_size: int):
        self._wide, self._batch_size = wide, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        groups: dict[bool, list[int]] = {True: [], False: []}
        while True:
            for index in random.sample(range(len(self._wide)), len(self._wide)):
                group = groups[self._wide[index]]
                group.append(index)
                if len(group) == self._batch_size:
                    yield list(group)
                    group.clear()


def main() -> None:
    """Serve rounds of batches, see `data_protocol.serve`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--annotations", default="annotations.json")
    parser.add_argument("--images-folder", default="images")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unscaled", action="store_true")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--images", type=int, required=True, help="images per round")
    arguments = parser.parse_args()
    set_cores(arguments.cores)
    torch.set_num_threads(1)  # as in worker processes
    random.seed(0)
    torch.manual_seed(0)
    dataset = CocoImages(arguments.folder, arguments.annotations, arguments.images_folder)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=GroupedBatches(dataset.wide, arguments.batch_size),
        num_workers=arguments.workers,
        collate_fn=Collate(not arguments.unscaled),
    )
    serve(iter(loader), arguments.batch_size, arguments.images)
    os._exit(0)  # the sampler is infinite, and stopping its workers takes longer than a round


if __name__ == "__main__":
    main()
