"""Result records examined: which errors they make, in which classes, in which images."""

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
