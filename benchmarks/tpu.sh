#!/usr/bin/env bash
# Compares results on a TPU with those on the CPU, then measures inference, the training step, parts of the network and
# operators, and at last the Pallas kernels of ROIAlign, which no model uses yet. `benchmarks/tpu.sh --small` is a dry run
# for CPUs, without the kernels. PYTHON is an interpreter with jax[tpu], flax and optax.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
SET=tpu ROUNDS=5
if [[ ${1:-} == --small ]]; then SET=small ROUNDS=1; fi
{
    "$PYTHON" -m benchmarks.precision "$@"
    echo
    # The most important measurements come first, in case the machine is available for a short time only.
    for rows in inference,training backbone,rpn,heads roi_align,nms,matching,top_k,pasting; do
        "$PYTHON" -m benchmarks.compare --set=$SET --rounds=$ROUNDS --rows=$rows
        echo
    done
    if [[ $SET == tpu ]]; then "$PYTHON" -m benchmarks.pallas_roi_align --run; fi
} | tee "${OUT:-.}/tpu.md"
