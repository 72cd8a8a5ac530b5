#!/usr/bin/env bash
# Checks results on the accelerator against this machine's CPU, then times operators, parts of the network, inference and
# the training step in turns with torchvision. Under 9 minutes on one GPU; `benchmarks/gpu.sh --small` is a dry run that a
# CPU can make. PYTHON has jax, flax and optax, PEER_PYTHON (the same by default) torch and torchvision.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
PEER=${PEER_PYTHON-$PYTHON}
SET=gpu ROUNDS=5
if [[ ${1:-} == --small ]]; then SET=small ROUNDS=1; fi
{
    "$PYTHON" -m benchmarks.precision "$@"
    echo
    # What matters most comes first: the time on such a machine may be short.
    for rows in inference,training backbone,rpn,heads roi_align,nms,matching,top_k,pasting; do
        "$PYTHON" -m benchmarks.compare --set=$SET --rounds=$ROUNDS --rows=$rows ${PEER:+--peer-python="$PEER"}
        echo
    done
} | tee "${OUT:-.}/gpu.md"
