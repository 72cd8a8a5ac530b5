"""torchvision's side of the comparisons in `benchmarks.compare`; each function prepares a task of `work.Case`.

On a GPU, or else on the CPU; channels last, which is the faster layout on both.
"""

from __future__ import annotations

import contextlib
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

from benchmarks import work
from benchmarks.turns import Task, serve
from benchmarks.work import Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEVELS = ("0", "1", "2", "3", "pool")  # its names of P2..P6


def task(run: Callable[[], Any], case: Case, *, gradient: bool = False) -> Task:
    """Runs a function, in low precision where the case has it."""
    if DEVICE.type == "cpu":
        torch.set_num_threads(2)

    def whole() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad() if gradient else torch.inference_mode())
            if case.low_precision:
                stack.enter_context(torch.autocast(DEVICE.type, torch.bfloat16))
            run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return Task(whole, peak=_device_peak if DEVICE.type == "cuda" else None)


def _device_peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**20


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def channels_first(array: np.ndarray) -> torch.Tensor:
    """NCHW in name, NHWC in memory."""
    return tensor(array).permute(0, 3, 1, 2)


def matrix_product(case: Case) -> Task:
    matrix = torch.randn(case.size, case.size, device=DEVICE)
    return task(lambda: matrix @ matrix, case)


def copying(case: Case) -> Task:
    values = torch.zeros(case.size, device=DEVICE)
    return task(lambda: values + 1, case)


def roi_align(case: Case) -> Task:
    # Its CPU operator works on contiguous channels-first maps, and would copy others first.
    levels = {n: channels_first(level).contiguous() for n, level in zip(LEVELS[:-1], work.maps(case), strict=False)}
    boxes = [tensor(each) for each in work.rois(case, 512)]
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
    arrays = [tensor(array) for array in work.crowd(case, work.CLASSES)]
    return task(lambda: batched_nms(*arrays, 0.5), case)


def matching(case: Case) -> Task:
    truth, anchors = tensor(work.objects(case)[0]), tensor(work.anchors(case))
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    return task(lambda: matcher(box_iou(truth, anchors)), case)


def top_k(case: Case) -> Task:
    levels = [tensor(level) for level in work.objectness(case)]
    return task(lambda: [level.topk(min(1000, len(level))) for level in levels], case)


def pasting(case: Case) -> Task:
    masks, boxes = (tensor(array) for array in work.masks(case))
    return task(lambda: paste_masks_in_image(masks[:, None], boxes, case.shape) >= 0.5, case)


def network(case: Case) -> MaskRCNN:
    body = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 3)  # stem and res2 are frozen
    # Its transform would resize other pictures than those of 800 to 1333 pixels.
    model = MaskRCNN(body, work.CLASSES + 1, min_size=min(case.shape), max_size=max(case.shape))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in work.weights().items()})
    return model.to(DEVICE, memory_format=torch.channels_last).eval()


def features(case: Case) -> dict[str, torch.Tensor]:
    return {name: channels_first(level) for name, level in zip(LEVELS, work.maps(case), strict=True)}


def backbone(case: Case) -> Task:
    body = network(case).backbone
    normalized = np.random.default_rng(0).standard_normal((case.images, *case.shape, 3), dtype=np.float32)
    x = channels_first(normalized)
    return task(lambda: body(x), case)


def rpn(case: Case) -> Task:
    model, levels = network(case), features(case)
    pictures = ImageList(torch.zeros(case.images, 3, *case.shape, device=DEVICE), [case.shape] * case.images)
    return task(lambda: model.rpn(pictures, levels), case)


def heads(case: Case) -> Task:
    part, levels = network(case).roi_heads, features(case)
    proposals = [tensor(each) for each in work.rois(case, work.PROPOSALS)]
    found = [tensor(each) for each in work.rois(case, work.DETECTIONS)]
    shapes = [case.shape] * case.images

    def run() -> None:
        part.box_predictor(part.box_head(part.box_roi_pool(levels, proposals, shapes)))
        part.mask_predictor(part.mask_head(part.mask_roi_pool(levels, found, shapes)))

    return task(run, case)


def inference(case: Case) -> Task:
    """From pictures in memory to whole masks."""
    model, pictures = network(case), tensor(work.pictures(case))
    return task(lambda: [found["masks"] >= 0.5 for found in model(scaled(pictures))], case)


def scaled(pictures: torch.Tensor) -> list[torch.Tensor]:
    """What its models take: a list of pictures (3, H, W) in 0..1."""
    return list(pictures.permute(0, 3, 1, 2).float() / 255)


def training(case: Case) -> Task:
    model, pictures = network(case).train(), tensor(work.pictures(case))
    targets = [target(boxes, case.shape) for boxes in work.objects(case)]
    copies = [tensor(each) for each in work.copies(case)]
    join = model.roi_heads.add_gt_proposals
    model.roi_heads.add_gt_proposals = lambda proposals, truth: join(
        [torch.cat(both) for both in zip(proposals, copies, strict=True)], truth
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        loss = sum(model(scaled(pictures), targets).values())
        with torch.autocast(DEVICE.type, enabled=False):
            loss.backward()
            optimizer.step()

    return task(run, case, gradient=True)


def target(boxes: np.ndarray, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Objects that fill their boxes."""
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
