"""Collectives between processes; `test_collectives.py` runs this file in each of them."""

from __future__ import annotations

import argparse
import contextlib
import sys

import jax
import numpy as np

from mrcnn_jax.cli import common
from mrcnn_jax.distributed import cluster, collectives
from mrcnn_jax.errors import ConfigError

LEAVES = {
    "float32": np.array([-0.0, np.nan, np.inf, 1e-45], np.float32),
    "float16": np.linspace(-1, 1, 7, dtype=np.float16).reshape(7, 1),
    "int64": np.array([-(2**62), 3]),
    "bool": np.array([True, False, True]),
    "scalar": np.array(7, np.uint8),
    "empty": np.zeros((0, 3)),
    "large": np.random.default_rng(0).integers(0, 256, 2_000_003, np.uint8),
}


def run_collectives() -> None:
    collectives._PIECE = 1 << 20  # so that large arrays are sent in pieces
    index, main = jax.process_index(), collectives.is_main()
    assert main == (index == 0)
    # As in the training loop, where implicit transfers are errors.
    with jax.transfer_guard("disallow"):
        got = collectives.broadcast(LEAVES if main else jax.tree.map(np.zeros_like, LEAVES))
        for name, leaf in LEAVES.items():
            assert (got[name].dtype, got[name].shape) == (leaf.dtype, leaf.shape), name
            assert got[name].tobytes() == leaf.tobytes(), name
        assert collectives.broadcast_bytes(b"\0said" if main else None) == b"\0said"
        ours = bytes([index]) * 1_500_000 * index  # of different lengths, one of them empty
        assert collectives.gather_bytes(ours) == [b"", b"\1" * 1_500_000]
        assert collectives.gather_bytes(b"") == [b"", b""]
        assert collectives.on_main(lambda: f"by {index}".encode()) == b"by 0"
    collectives.check_same({"seed": 0, "rate": float("nan")}, "configuration")
    with contextlib.suppress(ConfigError):
        collectives.check_same({"seed": index}, "configuration")
        raise AssertionError("a difference was not found")
    print(f"process {index} has talked", flush=True)
    collectives.on_main(_read)


def _read() -> bytes:
    raise FileNotFoundError("there is no such thing")


def main() -> None:
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    common.join(parser.parse_args())
    run_collectives()


if __name__ == "__main__":
    sys.exit(common.run(main))
