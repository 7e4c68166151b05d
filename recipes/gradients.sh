#!/usr/bin/env bash
# docs/gradients.png, docs/goal.png: tangential gradient norms early in training, and triplet diagrams of GOAL.
set -euo pipefail
python -m allpairs.analysis gradients --out analysis --overwrite "$@"
python -m allpairs.analysis diagrams --out analysis --overwrite
