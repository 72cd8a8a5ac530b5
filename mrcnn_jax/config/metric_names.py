"""Names of the evaluation metrics and of the validation loss."""

from __future__ import annotations

from mrcnn_jax.config.model_schema import ModelConfig
from mrcnn_jax.config.schema import Config

# In the order of COCOeval.stats, for boxes and masks, and for keypoints.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
# Metrics of LVIS for boxes and masks: AP of rare, common and frequent classes; 300 detections per image.
LVIS_METRICS = (*METRICS[:6], "APr", "APc", "APf", "AR300", *METRICS[9:])
VALIDATION_LOSS = "validation/loss"


def evaluation_metrics(model: ModelConfig) -> tuple[str, ...]:
    """Names of the COCO metrics of a model. Some may be undefined on a dataset."""
    names = [f"bbox/{name}" for name in METRICS]
    names += [f"segm/{name}" for name in METRICS] if model.mask is not None else []
    return (*names, *(f"keypoints/{name}" for name in KEYPOINT_METRICS if model.keypoint is not None))


def training_metrics(config: Config) -> tuple[str, ...]:
    """Names of the metrics that are measured during training."""
    losses = (VALIDATION_LOSS,) if config.train.validate_every else ()
    return losses + (evaluation_metrics(config.model) if config.train.evaluate_every else ())
