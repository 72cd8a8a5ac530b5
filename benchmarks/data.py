"""Images per second of the loader, from prepared records to padded batches with masks and flips.

    python -m benchmarks.data                    # the synthetic dataset at 128 px
    python -m benchmarks.data FOLDER [--annotations=annotations.json] [--images=images]   # and a COCO folder
    python -m benchmarks.data FOLDER --peer-python=PYTHON       # and torchvision's reference pipeline

With a folder: images per second with threads and with worker processes, on one core and on two, the time of each stage,
and the gain of decoding large photographs at a reduced size. PYTHON is an interpreter with torch, torchvision and
pycocotools. Rounds of compared loaders alternate. CPU time, the sum over all threads and processes of a loader, depends
less on other load of the machine than images per second. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.data_large import write_large
from benchmarks.data_protocol import LoaderWorker, Round
from benchmarks.data_shares import stage_milliseconds
from mrcnn_jax.config import Config, DataConfig, ShapesConfig, SplitConfig, TrainConfig, to_json

_BATCH_SIZE = 8


def shapes_config(root: str, workers: int) -> Config:
    """Return the configuration of the quickstart's synthetic dataset."""
    data = DataConfig(
        root=f"{root}/shapes",
        train=SplitConfig("train.json", "train"),
        shapes=ShapesConfig(train_images=64, eval_images=1),
        cache_dir=f"{root}/cache",
        buckets=((128, 128),),
        shortest_edge_train=(128,),
        workers=workers,
    )
    return Config(data=data, train=TrainConfig(batch_size=_BATCH_SIZE))


class CocoFolder(NamedTuple):
    """A COCO folder."""

    folder: Path
    split: SplitConfig
    cache: str

    def config(self, workers: int) -> Config:
        """Return a configuration with the default buckets (800x1088 and others) and full-size images."""
        data = DataConfig(
            root=str(self.folder),
            train=self.split,
            cache_dir=self.cache,
            shortest_edge_train=(800,),
            workers=workers,
        )
        return Config(data=data, train=TrainConfig(batch_size=_BATCH_SIZE))


def own_command(config: Config, cores: int, images: int, *options: str) -> list[str]:
    """Return the command of a worker with the loader of mrcnn_jax."""
    return [
        sys.executable,
        "-m",
        "benchmarks.data_ours",
        to_json(config),
        f"--cores={cores}",
        f"--images={images}",
        *options,
    ]


def torchvision_command(python: str, source: CocoFolder, cores: int, images: int, *options: str) -> list[str]:
    """Return the command of a worker with torchvision's loader, with one process per core."""
    names = (f"--annotations={source.split.annotations}", f"--images-folder={source.split.images}")
    rest = (f"--batch-size={_BATCH_SIZE}", f"--workers={cores}", f"--cores={cores}", f"--images={images}")
    return [python, "-m", "benchmarks.data_torchvision", str(source.folder), *names, *rest, *options]


def compare(title: str, commands: dict[str, Sequence[str]], rounds: int) -> dict[str, list[Round]]:
    """Run rounds of the loaders alternately, print a table, and return the rounds of each."""
    results: dict[str, list[Round]] = {name: [] for name in commands}
    with ExitStack() as stack:
        loaders = {}
        for name, command in commands.items():
            loaders[name] = LoaderWorker(command)
            stack.callback(loaders[name].close)
        for _ in range(rounds):
            for name, loader in loaders.items():
                results[name].append(loader.round())
    print(f"\n{title}\n\n| | images/s: median | max | CPU ms per image: median | min |\n|---|---|---|---|---|")
    for name, measured in results.items():
        rates, cpu = [r.rate for r in measured], [1e3 * r.cpu for r in measured]
        speed = f"{statistics.median(rates):.0f} | {max(rates):.0f}"
        print(f"| {name} | {speed} | {statistics.median(cpu):.1f} | {min(cpu):.1f} |", flush=True)
    return results


def print_ratios(results: dict[str, list[Round]], reference: str) -> None:
    """Print the speed of the other loaders relative to `reference`: median (min to max) over the rounds."""
    for name, measured in results.items():
        for quantity, speed in (("images/s", lambda r: r.rate), ("CPU time", lambda r: 1 / r.cpu)):
            ratios = [speed(r) / speed(other) for r, other in zip(measured, results[reference], strict=True)]
            if name != reference:
                spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
                print(f"{name} / {reference}, {quantity}: {spread} times")


def print_stages(config: Config, rounds: int) -> None:
    """Print the CPU time of each stage in one thread."""
    stages, without_clocks = stage_milliseconds(config, rounds)
    total = sum(stages.values())
    print(f"\nOne image in one thread: {without_clocks:.2f} ms of CPU time; {total:.2f} with clocks:\n")
    print("| stage | ms | share |\n|---|---|---|")
    for stage, milliseconds in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"| {stage} | {milliseconds:.2f} | {100 * milliseconds / total:.0f} % |")


def compare_cores(source: CocoFolder, rounds: int, images: int) -> None:
    """Compare one and two cores, threads and worker processes."""
    commands = {f"{n} core{'s'[: n - 1]}, threads": own_command(source.config(0), n, images) for n in (1, 2)}
    commands |= {f"2 cores, {n} worker{'s'[: n - 1]}": own_command(source.config(n), 2, images) for n in (1, 2)}
    compare(f"{source.folder.name} at 800 px", commands, rounds)


def compare_decoding(source: CocoFolder, rounds: int) -> None:
    """Compare decoding photographs of 12 megapixels at half and at full size."""
    folder = write_large(source.folder, source.split, Path(source.cache) / "large")
    config = CocoFolder(folder, SplitConfig("annotations.json", "images"), source.cache).config(0)
    commands = {"reduced": own_command(config, 2, 32), "full": own_command(config, 2, 32, "--full-decode")}
    print_ratios(compare("4000x3000 at 800 px, decoding", commands, rounds), "full")


def compare_torchvision(source: CocoFolder, rounds: int, images: int, python: str) -> None:
    """Compare the loader with torchvision's on two cores."""
    commands = {
        "ours, threads": own_command(source.config(0), 2, images),
        "ours, 2 workers": own_command(source.config(2), 2, images),
    }
    fewer = max(images // 4, _BATCH_SIZE)  # for rounds of similar length
    commands["torchvision"] = torchvision_command(python, source, 2, fewer)
    commands["torchvision, unscaled"] = torchvision_command(python, source, 2, fewer, "--unscaled")
    print_ratios(compare(f"{source.folder.name} at 800 px, two cores", commands, rounds), "torchvision")


def main() -> None:
    """Print a table for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--annotations", default="annotations.json")
    parser.add_argument("--images", default="images")
    parser.add_argument("--peer-python", default="", help="an interpreter with torch, torchvision and pycocotools")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-images", type=int, default=320)
    arguments = parser.parse_args()
    rounds, images = arguments.rounds, arguments.round_images
    with tempfile.TemporaryDirectory() as scratch:
        shapes = {f"{n} workers": own_command(shapes_config(scratch, n), 2, 1600) for n in (0, 2)}
        compare("shapes at 128x128", shapes, rounds)
        if not arguments.folder:
            return
        source = CocoFolder(arguments.folder, SplitConfig(arguments.annotations, arguments.images), scratch)
        print_stages(source.config(0), rounds)
        compare_cores(source, rounds, images)
        compare_decoding(source, rounds)
        if arguments.peer_python:
            compare_torchvision(source, rounds, images, arguments.peer_python)


if __name__ == "__main__":
    main()
