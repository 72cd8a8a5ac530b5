"""Images per second of the loader: prepared records to padded batches with masks and flips.

    python benchmarks/data.py                    # the procedural set at 128 px
    python benchmarks/data.py FOLDER [--annotations=annotations.json] [--images=images]   # and a COCO-style folder

Each line is the best of a few rounds: the machine's other work only ever makes a round slower. Images per second of
CPU time (all threads together) say what one core could do, and hardly depend on that other work.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from mrcnn_jax.config import Config, DataConfig, ShapesConfig, SplitConfig, TrainConfig
from mrcnn_jax.data import load_split, train_batches

_ROUNDS = 3


def images_per_second(config: Config, images: int) -> tuple[float, float]:
    """Images per second, and per second of this process's CPU time: the best of rounds of about `images` images."""
    batches_in_round = -(-images // config.train.batch_size)
    rates, cpu_rates = [], []
    with train_batches(load_split(config.data, "train"), config) as batches:
        for _ in range(4):
            next(batches)  # fills the pipeline
        for _ in range(_ROUNDS):
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(batches_in_round):
                next(batches)
            done = batches_in_round * config.train.batch_size
            rates.append(done / (time.perf_counter() - start))
            cpu_rates.append(done / (time.process_time() - cpu_start))
    return max(rates), max(cpu_rates)


def report(name: str, config: Config, images: int) -> None:
    """Measure one configuration and print its line."""
    rate, cpu_rate = images_per_second(config, images)
    in_cpu_time = f", {cpu_rate:.0f} per CPU second" if config.data.workers == 0 else ""
    print(f"loader, {name}, {config.data.workers} workers: {rate:.0f} images/s{in_cpu_time}", flush=True)


def shapes_config(root: str, workers: int) -> Config:
    """The procedural set as the quickstart reads it."""
    data = DataConfig(
        root=f"{root}/shapes",
        train=SplitConfig("train.json", "train"),
        shapes=ShapesConfig(train_images=64, eval_images=1),
        cache_dir=f"{root}/cache",
        buckets=((128, 128),),
        shortest_edge_train=(128,),
        workers=workers,
    )
    return Config(data=data, train=TrainConfig(batch_size=8))


def folder_config(folder: Path, annotations: str, images: str, cache: str, workers: int) -> Config:
    """A COCO-style folder in the default buckets, every image at full size (800 x 1088 and its kin)."""
    data = DataConfig(
        root=str(folder),
        train=SplitConfig(annotations, images),
        cache_dir=cache,
        shortest_edge_train=(800,),
        workers=workers,
    )
    return Config(data=data, train=TrainConfig(batch_size=8))


def main() -> None:
    """Print one line for each data set and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--annotations", default="annotations.json")
    parser.add_argument("--images", default="images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for workers in (0, 2):
            report("shapes at 128x128", shapes_config(scratch, workers), 400)
            if arguments.folder:
                config = folder_config(arguments.folder, arguments.annotations, arguments.images, scratch, workers)
                report(f"{arguments.folder.name} at 800 px", config, 160)


if __name__ == "__main__":
    main()
