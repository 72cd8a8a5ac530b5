"""The program of `test_collectives.py` for each of several processes: connects, runs every collective, exits."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

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
    collectives._MAX_CHUNK = 1 << 20  # so that the large arrays need several chunks
    index, main = jax.process_index(), collectives.is_main()
    assert main == (index == 0)
    # as in the training loop
    with jax.transfer_guard("disallow"):
        got = collectives.broadcast(LEAVES if main else jax.tree.map(np.zeros_like, LEAVES))
        for name, leaf in LEAVES.items():
            assert (got[name].dtype, got[name].shape) == (leaf.dtype, leaf.shape), name
            assert got[name].tobytes() == leaf.tobytes(), name
        time.sleep(0.3 * index)
        value = collectives.broadcast_object({"from": index})
        assert value.pop("from") == 0  # although process 0 has changed its value by now
        ours = bytes([index]) * 1_500_000 * index  # of different lengths, one of them empty
        assert collectives.gather(ours) == ([b"", b"\1" * 1_500_000] if main else [])
        assert collectives.gather(b"") == ([b"", b""] if main else [])
        assert collectives.run_on_main(lambda: f"by {index}".encode()) == b"by 0"
    collectives.check_same({"seed": 0, "rate": float("nan")}, "configuration")
    with contextlib.suppress(ConfigError):
        collectives.check_same({"seed": index}, "configuration")
        raise AssertionError("check_same missed a difference")
    print(f"process {index}: collectives work", flush=True)
    collectives.run_on_main(_read)


def _read() -> bytes:
    raise FileNotFoundError("no such file: a.txt")


def main() -> None:
    parser = argparse.ArgumentParser()
    cluster.add_flags(parser)
    common.initialize_distributed(parser.parse_args())
    run_collectives()


if __name__ == "__main__":
    sys.exit(common.run(main))
