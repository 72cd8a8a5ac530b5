"""Published weights of torchvision, Detectron2 and Detectron (2018) that a model here can load, by name.

Names are those of the projects: `maskrcnn_resnet50_fpn_v2`, `COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x`. A part
of a name is enough if no other name has it: `mask_rcnn_R_101_C4_3x`, `mask_rcnn_R_101_C4`.

Sources: torchvision 0.29.2, models/ and models/detection/; detectron2 02b5c4e, MODEL_ZOO.md and checkpoint/catalog.py;
Detectron 04155a0, MODEL_ZOO.md. Each average precision (AP) is the published one, on the validation set of `data`;
for Cityscapes and PASCAL VOC (test set of 2007) it is computed by the rules of their own evaluations. Sizes of
torchvision's files are published, others are those of the parameters and statistics in float32, to about 1 %.
"""

from __future__ import annotations

import difflib
import re
from typing import Literal, NamedTuple

from mrcnn_jax.errors import ConfigError

Source = Literal["torchvision", "detectron2", "detectron"]

_TORCHVISION = "https://download.pytorch.org/models/"
_FACEBOOK = "https://dl.fbaipublicfiles.com/"
LICENSES: dict[Source, str] = {
    "torchvision": "BSD-3-Clause",
    "detectron2": "CC BY-SA 3.0",
    "detectron": "CC BY-SA 3.0",
}


class ZooEntry(NamedTuple):
    """A published file of weights."""

    name: str
    source: Source
    url: str
    hash_prefix: str  # first digits of the SHA-256 (torchvision) or MD5 (Detectron2) of the file; empty: unknown
    megabytes: float  # of 10^6 bytes
    data: str  # that the model was trained on; "ImageNet": the file has a backbone only
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None

    @property
    def is_detector(self) -> bool:
        """Whether the file has a whole detection model, rather than a backbone."""
        return self.data != "ImageNet"


def _torchvision(name: str, file: str, megabytes: float, *ap: float | None) -> ZooEntry:
    """`file` ends with the first digits of its SHA-256; `ap`: box, mask, keypoint AP."""
    data = "COCO" if ap else "ImageNet"
    return ZooEntry(name, "torchvision", f"{_TORCHVISION}{file}.pth", file[-8:], megabytes, data, *ap)


def _detectron2(path: str, megabytes: float, *ap: float | None) -> ZooEntry:
    """`path` is NAME/ID/DIGITS, with the first digits of the MD5; `ap`: box, mask, keypoint AP."""
    name, _, digits = path.rsplit("/", 2)
    data = _DATA.get(name.split("/")[0], "COCO")
    url = f"{_FACEBOOK}detectron2/{path.removesuffix(digits)}model_final_{digits}.pkl"
    return ZooEntry(name, "detectron2", url, digits, megabytes, data, *ap)


def _catalog(name: str, path: str, megabytes: float) -> ZooEntry:
    """A backbone of Detectron2's catalog; `path` begins with the project."""
    source: Source = "detectron2" if path.startswith("detectron2/") else "detectron"
    return ZooEntry(name, source, f"{_FACEBOOK}{path}.pkl", "", megabytes, "ImageNet")


_DATA = {
    "LVISv0.5-InstanceSegmentation": "LVIS v0.5",
    "Cityscapes": "Cityscapes",
    "PascalVOC-Detection": "PASCAL VOC 2007 + 2012",
}

ENTRIES: tuple[ZooEntry, ...] = (
    _torchvision("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6", 167.5, 37.0),
    _torchvision("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a", 175.2, 46.7),
    _torchvision("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", 178.1, 37.9, 34.6),
    _torchvision("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", 185.8, 47.4, 41.8),
    _torchvision("keypointrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn_coco-fc266e95", 237.0, 54.6, None, 65.0),
    _torchvision(
        "keypointrcnn_resnet50_fpn/COCO_LEGACY", "keypointrcnn_resnet50_fpn_coco-9f466800", 237.0, 50.6, None, 61.1
    ),
    _detectron2("COCO-Detection/faster_rcnn_R_50_C4_1x/137257644/721ade", 135.6, 35.7),
    _detectron2("COCO-Detection/faster_rcnn_R_50_DC5_1x/137847829/51d356", 662.8, 37.3),
    _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_1x/137257794/b275ba", 167.2, 37.9),
    _detectron2("COCO-Detection/faster_rcnn_R_50_C4_3x/137849393/f97cb7", 135.6, 38.4),
    _detectron2("COCO-Detection/faster_rcnn_R_50_DC5_3x/137849425/68d202", 662.8, 39.0),
    _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/280758", 167.2, 40.2),
    _detectron2("COCO-Detection/faster_rcnn_R_101_C4_3x/138204752/298dad", 211.8, 41.1),
    _detectron2("COCO-Detection/faster_rcnn_R_101_DC5_3x/138204841/3e0943", 738.9, 40.6),
    _detectron2("COCO-Detection/faster_rcnn_R_101_FPN_3x/137851257/f6e8b1", 243.4, 42.0),
    _detectron2("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/68b088", 420.8, 43.0),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x/137259246/9243eb", 144.1, 36.8, 32.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x/137260150/4f86c3", 689.8, 38.3, 34.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/a54504", 177.8, 38.6, 35.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x/137849525/4ce675", 144.1, 39.8, 34.4),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x/137849551/84107b", 689.8, 40.0, 35.9),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/f10217", 177.8, 41.0, 37.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x/138363239/a2914c", 220.2, 42.6, 36.7),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x/138363294/0464b7", 766.0, 41.9, 37.3),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/a3ec72", 254.0, 42.9, 38.6),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/2d9806", 431.3, 44.3, 39.5),
    _detectron2("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ/42047764/bb69de", 185.5, 44.6, 40.3),
    _detectron2("new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ/42047638/89a8d3", 185.5, 46.3, 41.7),
    _detectron2("new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ/42019571/14d201", 185.5, 47.4, 42.5),
    _detectron2("new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ/42025812/4f7b58", 261.6, 46.4, 41.6),
    _detectron2("new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ/42131867/0bb7ae", 261.6, 48.0, 43.1),
    _detectron2("new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ/42073830/f96b26", 261.6, 48.9, 43.7),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x/137261548/04e291", 237.0, 53.6, None, 64.0),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/a6e10b", 237.0, 55.4, None, 65.5),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x/138363331/997cc7", 313.1, 56.4, None, 66.1),
    _detectron2("COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/5ad38f", 490.5, 57.3, None, 66.0),
    _detectron2("LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/144219072/571f7c", 202.6, 23.6, 24.4),
    _detectron2("LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x/144219035/824ab5", 278.7, 25.6, 25.9),
    _detectron2("LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x/144219108/5e3439", 456.1, 26.7, 27.1),
    _detectron2("Cityscapes/mask_rcnn_R_50_FPN/142423278/af9cf5", 176.2, None, 36.5),
    _detectron2("PascalVOC-Detection/faster_rcnn_R_50_C4/142202221/b1acc2", 133.1, 51.9),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_syncbn/169527823/3b3c51", 183.1, 41.9, 37.8),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/dc5d9e", 182.8, 42.6, 38.6),
    _detectron2("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/138602908/01ca85", 182.8, 39.9, 36.6),
    _detectron2("Misc/scratch_mask_rcnn_R_50_FPN_9x_gn/183808979/da7b4c", 182.8, 43.7, 39.6),
    _detectron2("Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn/184226666/5ce33e", 183.1, 43.6, 39.3),
    _detectron2("Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x/137781054/7ab50c", 167.2, 36.9),
    _detectron2("Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x/137781281/62ca52", 177.8, 37.8, 34.9),
    _detectron2("Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x/137781195/cce136", 237.0, 53.1, None, 64.2),
    # ImageNet classifiers, for `init`
    _catalog("R-50", "detectron2/ImageNetPretrained/MSRA/R-50", 102.4),
    _catalog("R-101", "detectron2/ImageNetPretrained/MSRA/R-101", 178.6),
    _catalog("X-101-32x8d", "detectron2/ImageNetPretrained/FAIR/X-101-32x8d", 356.0),
    _catalog("torchvision/R-50", "detectron2/ImageNetPretrained/torchvision/R-50", 102.4),
    _catalog("Detectron/R-50", "detectron/ImageNetPretrained/MSRA/R-50", 102.2),
    _catalog("R-50-GN", "detectron/ImageNetPretrained/47261647/R-50-GN", 102.2),
    _catalog("R-101-GN", "detectron/ImageNetPretrained/47592356/R-101-GN", 178.2),
    _catalog("X-101-64x4d", "detectron/ImageNetPretrained/FBResNeXt/X-101-64x4d", 334.2),
    _torchvision("resnet18/IMAGENET1K_V1", "resnet18-f37072fd", 46.8),
    _torchvision("resnet34/IMAGENET1K_V1", "resnet34-b627a593", 87.3),
    _torchvision("resnet50/IMAGENET1K_V1", "resnet50-0676ba61", 102.5),
    _torchvision("resnet50/IMAGENET1K_V2", "resnet50-11ad3fa6", 102.5),
    _torchvision("resnet101/IMAGENET1K_V1", "resnet101-63fe2227", 178.8),
    _torchvision("resnet101/IMAGENET1K_V2", "resnet101-cd907fc2", 178.8),
    _torchvision("resnext101_32x8d/IMAGENET1K_V1", "resnext101_32x8d-8ba56ff5", 356.1),
    _torchvision("resnext101_32x8d/IMAGENET1K_V2", "resnext101_32x8d-110c445d", 356.2),
    _torchvision("resnext101_64x4d/IMAGENET1K_V1", "resnext101_64x4d-173b62eb", 334.8),
)

_LSJ = "new_baselines/mask_rcnn_regnet{}_4gf_dds_FPN_{}ep_LSJ"
# Published weights of models that have a part that mrcnn_jax does not have, by that part.
OUT_OF_SCOPE: dict[str, tuple[str, ...]] = {
    "MobileNet": ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    "RegNet": tuple(_LSJ.format(kind, epochs) for kind in "xy" for epochs in (100, 200, 400)),
    "proposals from a file (Fast R-CNN)": ("COCO-Detection/fast_rcnn_R_50_FPN_1x",),
    "panoptic segmentation": (
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x",
        "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x",
        "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x",
    ),
    "deformable convolutions": ("Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5", "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5"),
    "a cascade of box heads": (
        "Misc/cascade_mask_rcnn_R_50_FPN_1x",
        "Misc/cascade_mask_rcnn_R_50_FPN_3x",
        "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
    ),
    "a vision transformer": (
        *(f"ViTDet/COCO/mask_rcnn_vitdet_{size}" for size in ("b_100ep", "l_100ep", "h_75ep")),
        *(f"ViTDet/COCO/cascade_mask_rcnn_vitdet_{size}" for size in ("b_100ep", "l_100ep", "h_75ep")),
        *(f"ViTDet/COCO/cascade_mask_rcnn_mvitv2_{size}" for size in ("b_in21k_100ep", "l_in21k_50ep", "h_in21k_36ep")),
        *(f"ViTDet/COCO/cascade_mask_rcnn_swin_{size}_in21k_50ep" for size in "bl"),
        *("MAE/mae_pretrain_vit_base", "MAE/mae_pretrain_vit_large", "swin/swin_base_patch4_window7_224_22k"),
        *("swin_t/IMAGENET1K_V1", "swin_s/IMAGENET1K_V1"),
    ),
    "PointRend": (
        *("PointRend/pointrend_rcnn_R_50_FPN_1x_coco", "PointRend/pointrend_rcnn_R_50_FPN_3x_coco"),
        *("PointRend/pointrend_rcnn_R_101_FPN_3x_coco", "PointRend/pointrend_rcnn_X_101_32x8d_FPN_3x_coco"),
    ),
    "ResNet-152": ("X-152-32x8d-IN5k",),
    "ConvNeXt": ("convnext_tiny/IMAGENET1K_V1", "convnext_small/IMAGENET1K_V1"),
}


def find(name: str) -> ZooEntry:
    """Return the entry with a name, or the only one with this part of a name, with or without schedule (_1x, _100ep).

    Raises ConfigError with the nearest names if there is none, with all names if there are several, and with the part
    that the model needs if it is out of scope.
    """
    name = name.removesuffix(".yaml")
    exact = [entry for entry in ENTRIES if entry.name == name]
    entries = exact or [entry for entry in ENTRIES if _has_part(entry.name, name)]
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise ConfigError(f"{name} is the name of several published weights; give one of {names}")
    if entries:
        return entries[0]
    for part, others in OUT_OF_SCOPE.items():
        if any(_has_part(other, name) for other in others):
            raise ConfigError(
                f"{name} needs {part}, which mrcnn_jax does not have; `mrcnn weights list` shows all names"
            )
    parts = {part: entry.name for entry in ENTRIES for part in (entry.name, *entry.name.split("/"))}
    near = list(dict.fromkeys(parts[part] for part in difflib.get_close_matches(name, parts, 5, 0.5)))
    hint = f"; the nearest names are {', '.join(near)}" if near else ""
    raise ConfigError(f"there are no published weights {name!r}{hint}; `mrcnn weights list` shows all names")


def _has_part(name: str, part: str) -> bool:
    return re.fullmatch(rf"(.*/)?{re.escape(part)}(_\d+x|_\d+ep)?(/.*)?", name) is not None
