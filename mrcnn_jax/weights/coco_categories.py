"""The 80 categories of COCO (Lin et al. 2014), by category id, and the keypoints of its person category."""

from __future__ import annotations

COCO_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
# The default of model.keypoint.flip_map and the OKS sigmas of COCO depend on this order.
PERSON_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
PERSON_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
_UNUSED = "N/A"  # torchvision's name of category ids that COCO does not use


def coco_categories(num_classes: int, *, person: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the category ids and names of the classes 1..C of a model trained on COCO.

    80 classes are COCO's categories in order (Detectron2). 90 classes are the category ids 1..90, unused ones included
    (torchvision). One class is COCO's person if `person` is true. Any other number: ids 1..C and no names.
    """
    if num_classes == 1 and person:
        return (1,), (COCO_CATEGORIES[1],)
    if num_classes == 80:
        return tuple(COCO_CATEGORIES), tuple(COCO_CATEGORIES.values())
    ids = tuple(range(1, num_classes + 1))
    return ids, tuple(COCO_CATEGORIES.get(i, _UNUSED) for i in ids) if num_classes == 90 else ()
