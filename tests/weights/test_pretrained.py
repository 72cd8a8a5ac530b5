"""Names of pretrained models that cannot be loaded."""

from __future__ import annotations

import pytest

from mrcnn_jax.errors import ConfigError
from mrcnn_jax.weights.pretrained import load_pretrained


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "maskrcnn_resnet50_fnp",
            r"nearest names are maskrcnn_resnet50_fpn, .*\(there is no folder maskrcnn_resnet50_fnp",
        ),
        ("resnet50", "several published weights; give one of resnet50/IMAGENET1K_V1, resnet50/IMAGENET1K_V2"),
        ("R-50", "R-50 is a backbone without a detection head: train a model with --config.init=zoo:R-50"),
        ("fasterrcnn_mobilenet_v3_large_fpn", "needs MobileNet"),
    ],
)
def test_unusable_names(name, message, download_server):
    with pytest.raises(ConfigError, match=message):
        load_pretrained(name)
    assert not download_server.requests
