"""The names of what is measured on held-back images."""

from __future__ import annotations

from mrcnn_jax.config.schema import Config, ModelConfig

# The order of COCOeval.stats for boxes and masks, and for keypoints.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
# What LVIS has instead for boxes and masks: APs of rare, common and frequent classes, 300 detections an image.
LVIS_METRICS = (*METRICS[:6], "APr", "APc", "APf", "AR300", *METRICS[9:])
VALIDATION_LOSS = "validation/loss"


def precisions(model: ModelConfig) -> tuple[str, ...]:
    """What COCO's tables say of such a model; the data may lack some of them."""
    names = [f"bbox/{name}" for name in METRICS]
    names += [f"segm/{name}" for name in METRICS] if model.mask is not None else []
    return (*names, *(f"keypoints/{name}" for name in KEYPOINT_METRICS if model.keypoint is not None))


def measured_while_training(config: Config) -> tuple[str, ...]:
    """The metrics that `config.train` asks for between steps."""
    losses = (VALIDATION_LOSS,) if config.train.validate_every else ()
    return losses + (precisions(config.model) if config.train.evaluate_every else ())
