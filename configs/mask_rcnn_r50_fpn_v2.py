"""torchvision's maskrcnn_resnet50_fpn_v2 on COCO 2017: batch norm in all parts, no frozen layers, deeper heads.

Published: box AP 47.4, mask AP 41.8 (torchvision, MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1, val2017; 32 GPUs with
two images each).
Training: batch size 64, SGD 0.1, weight decay 4e-5, 400 epochs, / 10 after 352 and 384 (pytorch/vision#5773);
large-scale jitter: images at 0.1 to 2 times the size that fills 1024x1024, cropped or padded to it.
Differences: padding is excluded from the image; evaluation uses the bucket, where 480x640 becomes 768x1024 instead of
800x1066 (`eval.resize=torchvision`: as in torchvision, one compilation per shape).
Status: not trained here. Tests compare the network with torchvision and run a training step of a small version.
Initial weights (`init`): none, as no layer is frozen; or torchvision's, `--config.init=zoo:resnet50/IMAGENET1K_V1`.
Command: `mrcnn train --config=mask_rcnn_r50_fpn_v2 --config.data.root=COCO --workdir=DIR`.
"""

from mrcnn_jax.config import AugmentConfig, Config, DataConfig, OptimizerConfig, TrainConfig, presets

EPOCH = 1833  # steps, for 117,266 annotated training images and batch size 64


def get_config() -> Config:
    milestones = (352 * EPOCH, 384 * EPOCH)
    return Config(
        "mask_rcnn_r50_fpn_v2",
        model=presets.torchvision_v2("sync_bn"),
        data=DataConfig(buckets=((1024, 1024),), augment=AugmentConfig(scale_jitter=(0.1, 2.0)), workers=4),
        optimizer=OptimizerConfig("sgd", 0.1, momentum=0.9, weight_decay=4e-5, milestones=milestones),
        train=TrainConfig(steps=400 * EPOCH, batch_size=64),
    )
