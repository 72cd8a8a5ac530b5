"""Tasks of `benchmarks.compare` in torchvision; each function prepares the task of its name.

On a GPU if there is one, else on the CPU. Channels last, which is faster on both. With `--compile`, the backbone is
compiled by `torch.compile` in the first run, which needs a C++ compiler.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms, box_iou

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.interleave import Task, serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILE = "--compile" in sys.argv
LEVELS = ("0", "1", "2", "3", "pool")  # torchvision's names of P2..P6


def task(run: Callable[[], Any], case: Case, *, gradient: bool = False) -> Task:
    """Return the task of a function, with autocast if the case has low precision."""
    if DEVICE.type == "cpu":
        torch.set_num_threads(2)

    def run_and_wait() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad() if gradient else torch.inference_mode())
            if case.low_precision:
                stack.enter_context(torch.autocast(DEVICE.type, torch.bfloat16))
            run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return Task(run_and_wait, peak=_device_peak if DEVICE.type == "cuda" else None)


def _device_peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**20


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def channels_first(array: np.ndarray) -> torch.Tensor:
    """Return an NHWC array as an NCHW tensor in channels-last layout."""
    return tensor(array).permute(0, 3, 1, 2)


def matrix_product(case: Case) -> Task:
    matrix = torch.randn(case.size, case.size, device=DEVICE)
    return task(lambda: matrix @ matrix, case)


def copying(case: Case) -> Task:
    values = torch.zeros(case.size, device=DEVICE)
    return task(lambda: values + 1, case)


def roi_align(case: Case) -> Task:
    # The CPU operator needs contiguous channels-first maps, and would copy others.
    levels = {
        n: channels_first(level).contiguous() for n, level in zip(LEVELS[:-1], cases.feature_maps(case), strict=False)
    }
    boxes = [tensor(each) for each in cases.rois(case, 512)]
    pool = MultiScaleRoIAlign(list(levels), case.size, 2)
    shapes = [case.shape] * case.images
    if not case.gradient:
        return task(lambda: pool(levels, boxes, shapes), case)
    for level in levels.values():
        level.requires_grad_()
    result = pool(levels, boxes, shapes)
    cotangent = torch.ones_like(result)
    leaves = list(levels.values())
    return task(lambda: torch.autograd.grad(result, leaves, cotangent, retain_graph=True), case, gradient=True)


def nms(case: Case) -> Task:
    arrays = [tensor(array) for array in cases.nms_inputs(case, cases.NUM_CLASSES)]
    return task(lambda: batched_nms(*arrays, 0.5), case)


def matching(case: Case) -> Task:
    truth, anchors = tensor(cases.object_boxes(case)[0]), tensor(cases.anchors(case))
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    return task(lambda: matcher(box_iou(truth, anchors)), case)


def top_k(case: Case) -> Task:
    levels = [tensor(level) for level in cases.objectness_logits(case)]
    return task(lambda: [level.topk(min(1000, len(level))) for level in levels], case)


def pasting(case: Case) -> Task:
    masks, boxes = (tensor(array) for array in cases.mask_probabilities(case))
    return task(lambda: paste_masks_in_image(masks[:, None], boxes, case.shape) >= 0.5, case)


def network(case: Case) -> MaskRCNN:
    body = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 3)  # with frozen stem and res2
    # So that its transform does not resize the images.
    model = MaskRCNN(body, cases.NUM_CLASSES + 1, min_size=min(case.shape), max_size=max(case.shape))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in cases.weights().items()})
    model = model.to(DEVICE, memory_format=torch.channels_last).eval()
    if COMPILE:
        model.backbone.compile()
    return model


def features(case: Case) -> dict[str, torch.Tensor]:
    return {name: channels_first(level) for name, level in zip(LEVELS, cases.feature_maps(case), strict=True)}


def backbone(case: Case) -> Task:
    body = network(case).backbone
    normalized = np.random.default_rng(0).standard_normal((case.images, *case.shape, 3), dtype=np.float32)
    x = channels_first(normalized)
    return task(lambda: body(x), case)


def rpn(case: Case) -> Task:
    model, levels = network(case), features(case)
    images = ImageList(torch.zeros(case.images, 3, *case.shape, device=DEVICE), [case.shape] * case.images)
    return task(lambda: model.rpn(images, levels), case)


def heads(case: Case) -> Task:
    roi_heads, levels = network(case).roi_heads, features(case)
    proposals = [tensor(each) for each in cases.rois(case, cases.NUM_PROPOSALS)]
    detections = [tensor(each) for each in cases.rois(case, cases.NUM_DETECTIONS)]
    shapes = [case.shape] * case.images

    def run() -> None:
        roi_heads.box_predictor(roi_heads.box_head(roi_heads.box_roi_pool(levels, proposals, shapes)))
        roi_heads.mask_predictor(roi_heads.mask_head(roi_heads.mask_roi_pool(levels, detections, shapes)))

    return task(run, case)


def inference(case: Case) -> Task:
    """Detection and pasted masks for images in memory."""
    model, images = network(case), tensor(cases.random_images(case))
    return task(lambda: [detections["masks"] >= 0.5 for detections in model(to_list(images))], case)


def to_list(images: torch.Tensor) -> list[torch.Tensor]:
    """Return the input of torchvision's models: a list of images (3, H, W) in 0..1."""
    return list(images.permute(0, 3, 1, 2).float() / 255)


def training(case: Case) -> Task:
    model, images = network(case).train(), tensor(cases.random_images(case))
    targets = [target(boxes, case.shape) for boxes in cases.object_boxes(case)]
    copies = [tensor(each) for each in cases.jittered_copies(case)]
    add_gt_proposals = model.roi_heads.add_gt_proposals
    model.roi_heads.add_gt_proposals = lambda proposals, truth: add_gt_proposals(
        [torch.cat(pair) for pair in zip(proposals, copies, strict=True)], truth
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        loss = sum(model(to_list(images), targets).values())
        with torch.autocast(DEVICE.type, enabled=False):
            loss.backward()
            optimizer.step()

    return task(run, case, gradient=True)


def target(boxes: np.ndarray, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return targets of objects that fill their boxes."""
    masks = np.zeros((len(boxes), *shape), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = np.ones(len(boxes), np.int64)
    return {"boxes": tensor(boxes), "labels": tensor(labels), "masks": tensor(masks)}


def prepare(**fields: Any) -> Task:
    case = Case(**fields)
    return globals()[case.task](case)


if __name__ == "__main__":
    serve(prepare)
