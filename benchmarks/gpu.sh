#!/usr/bin/env bash
# Checks results on the accelerator against this machine's CPU, then times inference and the training step side by side
# with torchvision. Under 9 minutes on one GPU; `benchmarks/gpu.sh --small` is a dry run that a CPU can make.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -m benchmarks.gpu "$@" | tee "${OUT:-.}/gpu.md"
