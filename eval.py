"""The command `mrcnn eval`."""

import sys

from mrcnn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
