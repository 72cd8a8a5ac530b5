#!/usr/bin/env bash
# Compares results on the accelerator with those on the CPU, then the speed of operators, parts of the network, inference
# and the training step with torchvision. Less than 9 minutes on one GPU; `benchmarks/gpu.sh --small` is a dry run for CPUs.
# PYTHON is an interpreter with jax, flax and optax, PEER_PYTHON (default: the same) one with torch and torchvision.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
PEER=${PEER_PYTHON-$PYTHON}
SET=gpu ROUNDS=5
if [[ ${1:-} == --small ]]; then SET=small ROUNDS=1; fi
{
    "$PYTHON" -m benchmarks.precision "$@"
    echo
    # The most important measurements come first, in case the machine is available for a short time only.
    for rows in inference,training backbone,rpn,heads roi_align,nms,matching,top_k,pasting; do
        "$PYTHON" -m benchmarks.compare --set=$SET --rounds=$ROUNDS --rows=$rows ${PEER:+--peer-python="$PEER"}
        echo
    done
} | tee "${OUT:-.}/gpu.md"
