"""Where the time of recorded steps went, by part of the network: `python -m benchmarks.trace_parts WORKDIR/profile`.

Reads the newest recording of `--profile` without TensorBoard and prints a Markdown table: for each part the time that
the devices worked on it in a step, forward and backward, summed over devices. A trace names instructions of a compiled
program, and holds the program, which says where in ours an instruction comes from; of a fusion it names one place.
"""

from __future__ import annotations

import argparse
import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

from mrcnn_jax.runtime.profiling import INPUT_EVENT

# The names in the paths of operations: modules of the network, and the scopes of `models.rcnn` and `training`.
PARTS = (
    *("normalize", "backbone", "fpn", "rpn_head", "proposals", "targets", "roi_align", "res5", "box_head", "mask_head"),
    *("keypoint_head", "losses", "psum", "optimizer", "detections", "keypoints"),
)
REST = "rest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="profile/ of a workdir or of its evaluation/")
    found = sorted(parser.parse_args().folder.rglob("*.xplane.pb"))
    if not found:
        parser.error("no recording (*.xplane.pb) is there")
    content = found[-1].read_bytes()
    places = instructions(content)
    busy, host, steps = measure(ProfileData.from_serialized_xspace(content), places)
    total = sum(busy.values())
    print("| part | forward, ms a step | backward, ms a step | share |\n|---|---|---|---|")
    for part in (*PARTS, REST):
        forward, backward = busy[part, False], busy[part, True]
        if forward + backward:
            print(f"| {part} | {forward / steps:.1f} | {backward / steps:.1f} | {(forward + backward) / total:.1%} |")
    print(
        f"\n{steps} steps of {host['steps'] / steps:.1f} ms, of which the host waited {host[INPUT_EVENT] / steps:.1f}"
        f" ms for data; the devices together worked {total / steps:.1f} ms a step"
    )


def measure(
    trace: ProfileData, places: dict[tuple[int, str], str]
) -> tuple[collections.Counter[Any], collections.Counter[str], int]:
    """Milliseconds by (part, whether backward), milliseconds of the host, number of steps."""
    busy: collections.Counter[Any] = collections.Counter()
    host: collections.Counter[str] = collections.Counter()
    steps = 0
    for line in (line for plane in trace.planes for line in plane.lines):
        running: list[tuple[float, Any]] = []  # the ends and parts of the instructions that this one is within
        for event in sorted(line.events, key=lambda event: (event.start_ns, -event.duration_ns)):
            stats = dict(event.stats)
            milliseconds = event.duration_ns / 1e6
            if "step_num" in stats:
                steps, host["steps"] = steps + 1, host["steps"] + milliseconds
            elif event.name == INPUT_EVENT:
                host[INPUT_EVENT] += milliseconds
            elif "hlo_op" in stats:
                part = part_of(places.get((stats["program_id"], stats["hlo_op"]), ""))
                while running and running[-1][0] <= event.start_ns:
                    running.pop()
                if running:  # its time counts here, not once more for the loop around it
                    busy[running[-1][1]] -= milliseconds
                busy[part] += milliseconds
                running.append((event.start_ns + event.duration_ns, part))
    return busy, host, steps


def part_of(place: str) -> tuple[str, bool]:
    """The part that a path such as jit(f)/transpose(jvp(MaskRCNN.features))/backbone/... lies in, and the direction."""
    names = re.split(r"[^\w.]+", place)
    return next((name for name in names if name in PARTS), REST), "transpose" in names


def instructions(xspace: bytes) -> dict[tuple[int, str], str]:
    """(id of a program, name of an instruction) -> path of the operation, of all programs in a trace.

    The numbers are those of the fields in xplane.proto and hlo.proto.
    """
    found = {}
    for plane in messages(memoryview(xspace), 1):
        for entry in messages(plane, 4) if text(plane, 2) == "/host:metadata" else ():
            (program,) = messages(entry, 2)
            number = int(text(program, 2).rpartition("(")[2].rstrip(")"))
            for hlo in (hlo for stat in messages(program, 5) for hlo in messages(stat, 6)):
                for module in messages(hlo, 1):
                    found.update({(number, name): place for name, place in operations(module).items()})
    return found


def operations(module: memoryview) -> dict[str, str]:
    """Name of an instruction -> path of the operation; for one that the compiler put in, of what it calls or reads."""
    names: dict[str, int] = {}
    places: dict[int, str] = {}  # by the id of an instruction, or of a computation: its first path
    for computation in messages(module, 3):  # those that are called come before those that call
        first = ""
        for instruction in messages(computation, 2):
            fields = list(read(instruction))
            (identity,) = (value for number, value in fields if number == 35)
            near = [
                identity
                for wanted in (38, 36)
                for number, ids in fields
                if number == wanted
                for identity in packed(ids)
            ]
            place = "".join(text(metadata, 2) for metadata in messages(instruction, 7))
            places[identity] = place or next((places[other] for other in near if places.get(other)), "")
            names[text(instruction, 1)] = identity
            first = first or places[identity]
        (identity,) = (value for number, value in read(computation) if number == 5)
        places[identity] = first
    return {name: places[identity] for name, identity in names.items()}


def messages(message: memoryview, number: int) -> list[memoryview]:
    return [value for field, value in read(message) if field == number and not isinstance(value, int)]


def text(message: memoryview, number: int) -> str:
    return "".join(str(value, "utf-8") for value in messages(message, number))


def packed(values: int | memoryview) -> list[int]:
    """The integers of a repeated field."""
    if isinstance(values, int):
        return [values]
    found, place = [], 0
    while place < len(values):
        value, place = integer(values, place)
        found.append(value)
    return found


def read(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protocol buffer."""
    place = 0
    while place < len(message):
        key, place = integer(message, place)
        value: int | memoryview
        if key & 7 == 0:
            value, place = integer(message, place)
        else:
            size, place = integer(message, place) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], place)
            value, place = message[place : place + size], place + size
        yield key >> 3, value


def integer(message: memoryview, place: int) -> tuple[int, int]:
    """The varint at `place`, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


if __name__ == "__main__":
    main()
