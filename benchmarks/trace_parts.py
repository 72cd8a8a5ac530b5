"""Time of recorded steps by part of the network: `python -m benchmarks.trace_parts WORKDIR/profile`.

Reads the newest recording of `--profile` without TensorBoard and prints a Markdown table with the device time per step
of each part, forward and backward, summed over devices. A trace contains the compiled program, whose metadata has the
source of each instruction; for a fusion, only one source.
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

# Names in the paths of operations: modules of the network, and scopes of `models.mask_rcnn` and `training`.
PARTS = (
    *("normalize", "backbone", "fpn", "rpn_head", "proposals", "targets", "roi_align", "res5", "box_head", "mask_head"),
    *("keypoint_head", "losses", "psum", "optimizer", "detections", "keypoints"),
)
OTHER = "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="profile/ of a workdir or of its evaluation/")
    files = sorted(parser.parse_args().folder.rglob("*.xplane.pb"))
    if not files:
        parser.error("no recording (*.xplane.pb) in the folder")
    content = files[-1].read_bytes()
    paths = operation_paths(content)
    busy, host, steps = measure(ProfileData.from_serialized_xspace(content), paths)
    total = sum(busy.values())
    print("| part | forward, ms per step | backward, ms per step | share |\n|---|---|---|---|")
    for part in (*PARTS, OTHER):
        forward, backward = busy[part, False], busy[part, True]
        if forward + backward:
            print(f"| {part} | {forward / steps:.1f} | {backward / steps:.1f} | {(forward + backward) / total:.1%} |")
    print(
        f"\n{steps} steps of {host['steps'] / steps:.1f} ms, of which the host waited"
        f" {host[INPUT_EVENT] / steps:.1f} ms for data; {total / steps:.1f} ms of device time per step"
    )


def measure(
    trace: ProfileData, paths: dict[tuple[int, str], str]
) -> tuple[collections.Counter[Any], collections.Counter[str], int]:
    """Return milliseconds by (part, is backward), milliseconds of the host, and the number of steps."""
    busy: collections.Counter[Any] = collections.Counter()
    host: collections.Counter[str] = collections.Counter()
    steps = 0
    for line in (line for plane in trace.planes for line in plane.lines):
        running: list[tuple[float, Any]] = []  # end and part of enclosing instructions
        for event in sorted(line.events, key=lambda event: (event.start_ns, -event.duration_ns)):
            stats = dict(event.stats)
            milliseconds = event.duration_ns / 1e6
            if "step_num" in stats:
                steps, host["steps"] = steps + 1, host["steps"] + milliseconds
            elif event.name == INPUT_EVENT:
                host[INPUT_EVENT] += milliseconds
            elif "hlo_op" in stats:
                part = part_of(paths.get((stats["program_id"], stats["hlo_op"]), ""))
                while running and running[-1][0] <= event.start_ns:
                    running.pop()
                if running:  # exclude it from the time of the enclosing instruction
                    busy[running[-1][1]] -= milliseconds
                busy[part] += milliseconds
                running.append((event.start_ns + event.duration_ns, part))
    return busy, host, steps


def part_of(path: str) -> tuple[str, bool]:
    """Return the part of a path like jit(f)/transpose(jvp(MaskRCNN.features))/backbone/..., and if it is backward."""
    names = re.split(r"[^\w.]+", path)
    return next((name for name in names if name in PARTS), OTHER), "transpose" in names


def operation_paths(xspace: bytes) -> dict[tuple[int, str], str]:
    """Return a mapping from (program id, instruction name) to the path of the operation, for all programs of a trace.

    Field numbers are those of xplane.proto and hlo.proto.
    """
    paths = {}
    for plane in messages(memoryview(xspace), 1):
        for entry in messages(plane, 4) if text(plane, 2) == "/host:metadata" else ():
            (program,) = messages(entry, 2)
            number = int(text(program, 2).rpartition("(")[2].rstrip(")"))
            for hlo in (hlo for stat in messages(program, 5) for hlo in messages(stat, 6)):
                for module in messages(hlo, 1):
                    paths.update({(number, name): path for name, path in module_paths(module).items()})
    return paths


def module_paths(module: memoryview) -> dict[str, str]:
    """Return the path of the operation of each instruction, by name.

    Instructions that the compiler has inserted get the path of a called computation or an operand.
    """
    names: dict[str, int] = {}
    paths: dict[int, str] = {}  # by the id of an instruction or a computation; of a computation, the first path
    for computation in messages(module, 3):  # called computations come before their callers
        first = ""
        for instruction in messages(computation, 2):
            fields = list(fields_of(instruction))
            (identity,) = (value for number, value in fields if number == 35)
            related = [
                identity for field in (38, 36) for number, ids in fields if number == field for identity in packed(ids)
            ]
            path = "".join(text(metadata, 2) for metadata in messages(instruction, 7))
            paths[identity] = path or next((paths[other] for other in related if paths.get(other)), "")
            names[text(instruction, 1)] = identity
            first = first or paths[identity]
        (identity,) = (value for number, value in fields_of(computation) if number == 5)
        paths[identity] = first
    return {name: paths[identity] for name, identity in names.items()}


def messages(message: memoryview, number: int) -> list[memoryview]:
    return [value for field, value in fields_of(message) if field == number and not isinstance(value, int)]


def text(message: memoryview, number: int) -> str:
    return "".join(str(value, "utf-8") for value in messages(message, number))


def packed(values: int | memoryview) -> list[int]:
    """Return the integers of a repeated field."""
    if isinstance(values, int):
        return [values]
    integers, position = [], 0
    while position < len(values):
        value, position = varint(values, position)
        integers.append(value)
    return integers


def fields_of(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field of a protocol buffer."""
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        value: int | memoryview
        if key & 7 == 0:
            value, position = varint(message, position)
        else:
            size, position = varint(message, position) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], position)
            value, position = message[position : position + size], position + size
        yield key >> 3, value


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the varint at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


if __name__ == "__main__":
    main()
