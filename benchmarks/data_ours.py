"""Worker of `benchmarks.data` with the loader of mrcnn_jax."""

from __future__ import annotations

import argparse
import contextlib
from unittest import mock

from benchmarks.data_protocol import serve, set_cores


def main() -> None:
    """Serve rounds of training batches, see `data_protocol.serve`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="JSON of a configuration")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--images", type=int, required=True, help="images per round")
    parser.add_argument("--full-decode", action="store_true", help="decode every image at its full size")
    arguments = parser.parse_args()
    set_cores(arguments.cores)

    # Imported after the cores are set, from which some libraries derive their number of threads.
    from mrcnn_jax.config import from_json
    from mrcnn_jax.data import load_split, train_batches
    from mrcnn_jax.data.augment import random_choices

    config = from_json(arguments.config)
    decoding = (
        mock.patch.object(random_choices, "reduction", return_value=1)
        if arguments.full_decode
        else contextlib.nullcontext()
    )
    with decoding, train_batches(load_split(config.data, "train"), config) as batches:
        serve(batches, config.train.batch_size, arguments.images)


if __name__ == "__main__":
    main()
