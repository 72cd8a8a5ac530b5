"""The command `mrcnn predict`."""

import sys

from mrcnn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
