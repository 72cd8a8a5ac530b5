"""Types of configuration fields with the interval that their values must be in."""

from __future__ import annotations

import os.path
from typing import Annotated, Literal

NonNegativeInt = Annotated[int, "[0, inf)"]
PositiveInt = Annotated[int, "[1, inf)"]
EdgeLength = Annotated[int, "[8, 65535]"]  # pixels
Seed = Annotated[int, "[0, 4294967295]"]  # `jax.random.key` ignores higher bits
Int64 = Annotated[int, "[-9223372036854775808, 9223372036854775808)"]
FiniteFloat = Annotated[float, "(-inf, inf)"]
NonNegativeFloat = Annotated[float, "[0, inf)"]
PositiveFloat = Annotated[float, "(0, inf)"]
Fraction = Annotated[float, "[0, 1]"]
PositiveFraction = Annotated[float, "(0, 1]"]
FilePath = Annotated[str, os.path.expanduser]  # of a file or directory

NormName = Literal["frozen_bn", "bn", "sync_bn", "gn"]
HeadNormName = Literal["none", "bn", "sync_bn", "gn"]
ChannelOrder = Literal["rgb", "bgr"]
FeaturesName = Literal["fpn", "c4", "c5", "dc5"]
PasteRule = Literal["detectron2", "torchvision"]
ScoreRule = Literal["probability", "logit"]
