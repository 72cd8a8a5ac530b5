#!/usr/bin/env bash
# Creates the environment of `benchmarks.tpu_program`: jax with the TPU's compiler, which needs no TPU (1.4 GB).
#
#     benchmarks/tpu_env.sh [FOLDER]      # default: .venv-tpu; PYTHON is an interpreter (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FOLDER=${1:-.venv-tpu}
[[ -x $FOLDER/bin/python ]] || "${PYTHON:-python3}" -m venv "$FOLDER"
"$FOLDER/bin/python" -m pip install --quiet --disable-pip-version-check "jax[tpu]" flax optax
echo "$FOLDER/bin/python -m benchmarks.tpu_program --cache=FOLDER"
