"""Images per second of the loader: prepared records to padded batches with masks and flips.

    python -m benchmarks.data                    # the procedural set at 128 px
    python -m benchmarks.data FOLDER [--annotations=annotations.json] [--images=images]   # and a COCO-style folder
    python -m benchmarks.data FOLDER --peer-python=PYTHON       # and, in turns, torchvision's reference pipeline

With a folder: images a second with threads and with worker processes, on one core and on two, what each stage takes,
and what decoding large photographs at a reduced size gains. PYTHON is an interpreter with torch, torchvision and
pycocotools. Sides that are compared take turns, round by round. CPU time is that of all threads and processes of a side
together; it hardly depends on what else the machine does, which images per second do. Linux.
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
from benchmarks.data_protocol import Loader, Round
from benchmarks.data_shares import shares
from mrcnn_jax.config import Config, DataConfig, ShapesConfig, SplitConfig, TrainConfig, to_json

_BATCH_SIZE = 8


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
    return Config(data=data, train=TrainConfig(batch_size=_BATCH_SIZE))


class Source(NamedTuple):
    """A COCO-style folder."""

    folder: Path
    split: SplitConfig
    cache: str

    def config(self, workers: int) -> Config:
        """In the default buckets, every image at full size (800 x 1088 and its kin)."""
        data = DataConfig(
            root=str(self.folder),
            train=self.split,
            cache_dir=self.cache,
            shortest_edge_train=(800,),
            workers=workers,
        )
        return Config(data=data, train=TrainConfig(batch_size=_BATCH_SIZE))


def ours(config: Config, cores: int, images: int, *options: str) -> list[str]:
    """The command that serves rounds of our batches."""
    return [
        sys.executable,
        "-m",
        "benchmarks.data_ours",
        to_json(config),
        f"--cores={cores}",
        f"--images={images}",
        *options,
    ]


def peer(python: str, source: Source, cores: int, images: int, *options: str) -> list[str]:
    """The command that serves rounds of torchvision's batches, from one worker process for each core."""
    names = (f"--annotations={source.split.annotations}", f"--images-folder={source.split.images}")
    rest = (f"--batch-size={_BATCH_SIZE}", f"--workers={cores}", f"--cores={cores}", f"--images={images}")
    return [python, "-m", "benchmarks.data_peer", str(source.folder), *names, *rest, *options]


def compare(title: str, sides: dict[str, Sequence[str]], rounds: int) -> dict[str, list[Round]]:
    """Let the sides take turns, print a table, and return the rounds of each."""
    taken: dict[str, list[Round]] = {name: [] for name in sides}
    with ExitStack() as stack:
        running = {}
        for name, command in sides.items():
            running[name] = Loader(command)
            stack.callback(running[name].close)
        for _ in range(rounds):
            for name, side in running.items():
                taken[name].append(side.round())
    print(f"\n{title}\n\n| | images/s: median | best | CPU ms an image: median | least |\n|---|---|---|---|---|")
    for name, results in taken.items():
        rates, cpu = [r.rate for r in results], [1e3 * r.cpu for r in results]
        middle = f"{statistics.median(rates):.0f} | {max(rates):.0f}"
        print(f"| {name} | {middle} | {statistics.median(cpu):.1f} | {min(cpu):.1f} |", flush=True)
    return taken


def print_ratios(taken: dict[str, list[Round]], reference: str) -> None:
    """How many times as fast as the side `reference` the others are; median (least, most) over the rounds."""
    for name, results in taken.items():
        for what, of in (("images/s", lambda r: r.rate), ("CPU time", lambda r: 1 / r.cpu)):
            ratios = [of(r) / of(other) for r, other in zip(results, taken[reference], strict=True)]
            if name != reference:
                spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
                print(f"{name} / {reference}, {what}: {spread} times")


def print_shares(config: Config, rounds: int) -> None:
    """What each stage takes, in one thread."""
    stages, whole = shares(config, rounds)
    total = sum(stages.values())
    print(f"\nOne image in one thread: {whole:.2f} ms of CPU time; {total:.2f} with clocks:\n")
    print("| stage | ms | share |\n|---|---|---|")
    for stage, milliseconds in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"| {stage} | {milliseconds:.2f} | {100 * milliseconds / total:.0f} % |")


def compare_cores(source: Source, rounds: int, images: int) -> None:
    """One core and two, threads and worker processes."""
    sides = {f"{n} core{'s'[: n - 1]}, threads": ours(source.config(0), n, images) for n in (1, 2)}
    sides |= {f"2 cores, {n} worker{'s'[: n - 1]}": ours(source.config(n), 2, images) for n in (1, 2)}
    compare(f"{source.folder.name} at 800 px", sides, rounds)


def compare_decoding(source: Source, rounds: int) -> None:
    """Photographs of 12 megapixels, decoded at half their size or in full."""
    folder = write_large(source.folder, source.split, Path(source.cache) / "large")
    config = Source(folder, SplitConfig("annotations.json", "images"), source.cache).config(0)
    sides = {"reduced": ours(config, 2, 32), "full": ours(config, 2, 32, "--full-decode")}
    print_ratios(compare("4000x3000 at 800 px, decoding", sides, rounds), "full")


def compare_peer(source: Source, rounds: int, images: int, python: str) -> None:
    """torchvision's pipeline and ours, on two cores."""
    sides = {"ours, threads": ours(source.config(0), 2, images), "ours, 2 workers": ours(source.config(2), 2, images)}
    fewer = max(images // 4, _BATCH_SIZE)  # so that the rounds are about as long
    sides["torchvision"] = peer(python, source, 2, fewer)
    sides["torchvision, unscaled"] = peer(python, source, 2, fewer, "--unscaled")
    print_ratios(compare(f"{source.folder.name} at 800 px, two cores", sides, rounds), "torchvision")


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
        shapes = {f"{n} workers": ours(shapes_config(scratch, n), 2, 1600) for n in (0, 2)}
        compare("shapes at 128x128", shapes, rounds)
        if not arguments.folder:
            return
        source = Source(arguments.folder, SplitConfig(arguments.annotations, arguments.images), scratch)
        print_shares(source.config(0), rounds)
        compare_cores(source, rounds, images)
        compare_decoding(source, rounds)
        if arguments.peer_python:
            compare_peer(source, rounds, images, arguments.peer_python)


if __name__ == "__main__":
    main()
