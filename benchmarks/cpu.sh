#!/usr/bin/env bash
# All benchmarks for CPUs, beside torchvision where it has the same; `make bench` runs it. Three quarters of an hour on two
# cores. What is printed is appended to benchmarks/RESULTS.md. `--small` is a dry run of some minutes that keeps nothing.
#
# torchvision gets an environment of its own, of several GB; PEER_PYTHON names another interpreter that has it, and
# pycocotools. COCO names a folder with `annotations.json` and `images/` for the loader, which else reads generated ones.
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
    "$PYTHON" -c 'from benchmarks.surroundings import machine; print(machine() + ".\n")'
    "$PYTHON" "$@"
}

{
    echo
    "$PYTHON" -m benchmarks.compare --set="$SET" --rounds="$ROUNDS" --peer-python="$PEER_PYTHON"
    echo
    "$PYTHON" -m benchmarks.first_result "${SMALL[@]}" --peer-python="$PEER_PYTHON"
    section "Loader" -m benchmarks.data ${COCO:+"$COCO" --peer-python="$PEER_PYTHON"}
    section "Evaluation on the host" -m benchmarks.evaluation --images="$IMAGES" | sed 's/$/  /' # each line a line
} | tee -a "$RESULTS"
