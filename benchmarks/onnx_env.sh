#!/usr/bin/env bash
# Creates an environment for ONNX files: jax2onnx, which needs an older orbax-checkpoint, ONNX Runtime, OpenVINO (1.8 GB).
#
#     benchmarks/onnx_env.sh [FOLDER]      # default: .venv-onnx; PYTHON is an interpreter (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FOLDER=${1:-.venv-onnx}
[[ -x $FOLDER/bin/python ]] || "${PYTHON:-python3}" -m venv "$FOLDER"
"$FOLDER/bin/python" -m pip install --quiet --disable-pip-version-check -e . "jax2onnx==0.17.*" onnx onnxruntime openvino pytest hypothesis
echo "$FOLDER/bin/python -m benchmarks.onnx_runtime --help"
