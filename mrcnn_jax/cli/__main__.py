"""`python -m mrcnn_jax.cli` runs the command `mrcnn`."""

import sys

from mrcnn_jax.cli import main

sys.exit(main())
