"""`python -m mrcnn_jax.cli`: the same as `mrcnn`."""

import sys

from mrcnn_jax.cli import main

sys.exit(main())
