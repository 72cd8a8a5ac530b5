"""Which of the CPU's float32 detections the default device finds, in float32 and in bfloat16.

    python -m benchmarks.precision [--small]

The weights are generated (`benchmarks.work`): hundreds of candidates with almost equal scores, so this is stricter than
any trained network would be.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np

from benchmarks import work
from benchmarks.side_ours import model_config, sizes_of
from benchmarks.work import Case
from mrcnn_jax.models.mask_rcnn import build_model, detect
from mrcnn_jax.structures import Detections
from mrcnn_jax.weights import torchvision_names as names

SCORE = 0.3  # of the detections that are looked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="float32 only, small pictures: a dry run")
    small = parser.parse_args().small
    case = Case("inference", 2, 64, 96) if small else Case("inference", 2, 256, 320)
    here, cpu = jax.devices()[0], jax.devices("cpu")[0]
    expected = detections(case, cpu, "highest")
    print(f"{here.device_kind}, jax {jax.__version__}; matched: the same label, and a box within a pixel\n")
    print(
        f"| against float32 on the CPU | of all | of scores above {SCORE} | largest differences: score | box, pixels |"
    )
    print("|---|---|---|---|---|")
    rows = {
        "float32, highest precision": partial(detections, case, here, "highest"),
        "float32, default precision": partial(detections, case, here, None),
    }
    if not small:  # a CPU takes minutes for it
        rows["bfloat16"] = partial(detections, case._replace(low_precision=True), here, None)
    for label, find in rows.items():
        print(f"| {label} | {' | '.join(compared(find(), expected))} |", flush=True)


def detections(case: Case, device: jax.Device, precision: str | None) -> Detections:
    """On the host."""
    model = build_model(model_config(case.low_precision))
    with jax.default_device(device), jax.default_matmul_precision(precision):
        variables = names.import_state(model, work.weights())
        found = jax.jit(partial(detect, model))(variables, work.pictures(case), sizes_of(case))
        return jax.tree.map(np.asarray, found)


def compared(ours: Detections, expected: Detections) -> tuple[str, ...]:
    """Cells of the table. Differences are those of matched pairs."""
    wanted, matched, score, box = [], [], 0.0, 0.0
    for i in range(len(expected.valid)):
        for j in np.flatnonzero(expected.valid[i]):
            distance = np.abs(ours.boxes[i] - expected.boxes[i][j]).max(1)
            distance[~(ours.valid[i] & (ours.classes[i] == expected.classes[i][j]))] = np.inf
            nearest = int(distance.argmin())
            wanted.append(expected.scores[i][j])
            matched.append(distance[nearest] <= 1)
            if matched[-1]:
                score = max(score, abs(float(ours.scores[i][nearest] - wanted[-1])))
                box = max(box, float(distance[nearest]))
    high = np.array(wanted) > SCORE
    shares = (f"{np.sum(matched)} of {len(wanted)}", f"{np.sum(np.array(matched)[high])} of {high.sum()}")
    return *shares, f"{score:.1e}", f"{box:.1e}"


if __name__ == "__main__":
    main()
