#!/usr/bin/env bash
# All benchmarks for CPUs, compared with torchvision where possible; run by `make bench`. Takes an hour on two cores.
# The output is appended to benchmarks/RESULTS.md, except with `--small`, a dry run of some minutes.
#
# torchvision is installed in a separate environment of several GB, unless PEER_PYTHON is an interpreter with torchvision
# and pycocotools. COCO is a folder with `annotations.json` and `images/` for the loader (default: generated images).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
if [[ -z ${PEER_PYTHON:-} ]]; then
    PEER_PYTHON=.venv-peer/bin/python
    [[ -x $PEER_PYTHON ]] || "$PYTHON" -m venv .venv-peer
    "$PEER_PYTHON" -m pip install --quiet --disable-pip-version-check torchvision==0.29.2 pycocotools
fi
RESULTS=benchmarks/RESULTS.md SET=cpu ROUNDS=5 IMAGES=1000 SMALL=()
if [[ ${1:-} == --small ]]; then RESULTS=/dev/null SET=small ROUNDS=1 IMAGES=20 SMALL=(--small); fi

section() { # title, command...
    local title=$1
    shift
    printf '\n## %s (`python %s`)\n\n' "$title" "${*:1:2}"
    "$PYTHON" -c 'from benchmarks.environment import describe_machine; print(describe_machine() + ".\n")'
    "$PYTHON" "$@"
}

{
    echo
    "$PYTHON" -m benchmarks.compare --set="$SET" --rounds="$ROUNDS" --peer-python="$PEER_PYTHON"
    echo
    "$PYTHON" -m benchmarks.first_result "${SMALL[@]}" --peer-python="$PEER_PYTHON"
    section "Loader" -m benchmarks.data ${COCO:+"$COCO" --peer-python="$PEER_PYTHON"}
    section "Evaluation on the host" -m benchmarks.evaluation --images="$IMAGES" | sed 's/$/  /' # Markdown line breaks
} | tee -a "$RESULTS"
