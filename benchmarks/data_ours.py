"""Our loader as one side of a comparison; see `data_protocol`."""

from __future__ import annotations

import argparse
import contextlib
from unittest import mock

from benchmarks.data_protocol import run_on, serve


def main() -> None:
    """Serve rounds of training batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="JSON of a configuration")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--images", type=int, required=True, help="images in a round")
    parser.add_argument("--full-decode", action="store_true", help="decode every image at its full size")
    arguments = parser.parse_args()
    run_on(arguments.cores)

    # After the choice of cores, by which some libraries count their threads.
    from mrcnn_jax.config import from_json
    from mrcnn_jax.data import load_split, train_batches
    from mrcnn_jax.data.augment import random_choices

    config = from_json(arguments.config)
    whole = (
        mock.patch.object(random_choices, "decode_reduction", return_value=1)
        if arguments.full_decode
        else contextlib.nullcontext()
    )
    with whole, train_batches(load_split(config.data, "train"), config) as batches:
        serve(batches, config.train.batch_size, arguments.images)


if __name__ == "__main__":
    main()
