"""Analysis of result records: errors by kind, by class and by image."""

from mrcnn_jax.evaluation.analysis.results import (
    ERRORS,
    SPECIAL_ERRORS,
    Analysis,
    Category,
    ClassScores,
    ImageResult,
    Instance,
    MetricTable,
    TideErrors,
)

__all__ = [
    "ERRORS",
    "SPECIAL_ERRORS",
    "Analysis",
    "Category",
    "ClassScores",
    "ImageResult",
    "Instance",
    "MetricTable",
    "TideErrors",
]
