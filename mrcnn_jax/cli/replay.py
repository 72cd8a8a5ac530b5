"""Repeat a training step whose loss was not finite, on one device.

Reports which images, losses and parameters cause it. FILE contains everything
that the step needs; neither the dataset nor the run is read. The exit status is
1 if the step is not finite again, 0 if it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.runtime import compilation_cache


def main(arguments: Sequence[str]) -> int:
    parser = common.make_parser("replay", __doc__)
    where = "failures/step_NNNNNN.npz in the work directory of a run"
    common.add(parser, "file", "FILE", where, os.path.expanduser)
    options, _ = common.parse(parser, arguments)
    from mrcnn_jax.training.nonfinite_dump import load_failed_step
    from mrcnn_jax.training.replay import replay

    saved = load_failed_step(options.file)
    compilation_cache.enable()
    return 1 if replay(saved) else 0
