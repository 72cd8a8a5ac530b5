"""The command `mrcnn train`."""

import sys

from mrcnn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
