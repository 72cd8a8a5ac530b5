"""Agreement of detections on the default device, in float32 and bfloat16, with float32 on the CPU.

    python -m benchmarks.precision [--small]

The generated weights (`benchmarks.cases`) give hundreds of candidates with almost equal scores, so this is
stricter than with a trained network.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np

from benchmarks import cases
from benchmarks.bench_ours import model_config, sizes_of
from benchmarks.cases import Case
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.structures import Detections
from mrcnn_jax.weights import torchvision_names as names
from mrcnn_jax.weights.naming import import_state

HIGH_SCORE = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="float32 and small images only, for a dry run")
    small = parser.parse_args().small
    case = Case("inference", 2, 64, 96) if small else Case("inference", 2, 256, 320)
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    expected = detections(case, cpu, "highest")
    print(f"{device.device_kind}, jax {jax.__version__}; matched: same label, and box within one pixel\n")
    print(
        f"| against float32 on the CPU | all | scores above {HIGH_SCORE} | largest differences: score | box, pixels |"
    )
    print("|---|---|---|---|---|")
    rows = {
        "float32, highest precision": partial(detections, case, device, "highest"),
        "float32, default precision": partial(detections, case, device, None),
    }
    if not small:  # takes minutes on a CPU
        rows["bfloat16"] = partial(detections, case._replace(low_precision=True), device, None)
    for label, run in rows.items():
        print(f"| {label} | {' | '.join(compare(run(), expected))} |", flush=True)


def detections(case: Case, device: jax.Device, precision: str | None) -> Detections:
    """Return detections on the host."""
    model = build_model(model_config(case.low_precision))
    with jax.default_device(device), jax.default_matmul_precision(precision):
        variables = import_state(names.DETECTION, model, cases.weights())
        result = jax.jit(partial(detect, model))(variables, cases.random_images(case), sizes_of(case))
        return jax.tree.map(np.asarray, result)


def compare(actual: Detections, expected: Detections) -> tuple[str, ...]:
    """Return the cells of the table. Differences are those of matched pairs."""
    scores, matched, score, box = [], [], 0.0, 0.0
    for i in range(len(expected.valid)):
        for j in np.flatnonzero(expected.valid[i]):
            distance = np.abs(actual.boxes[i] - expected.boxes[i][j]).max(1)
            distance[~(actual.valid[i] & (actual.classes[i] == expected.classes[i][j]))] = np.inf
            nearest = int(distance.argmin())
            scores.append(expected.scores[i][j])
            matched.append(distance[nearest] <= 1)
            if matched[-1]:
                score = max(score, abs(float(actual.scores[i][nearest] - scores[-1])))
                box = max(box, float(distance[nearest]))
    high = np.array(scores) > HIGH_SCORE
    counts = (f"{np.sum(matched)} of {len(scores)}", f"{np.sum(np.array(matched)[high])} of {high.sum()}")
    return *counts, f"{score:.1e}", f"{box:.1e}"


if __name__ == "__main__":
    main()
