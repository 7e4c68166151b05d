#!/usr/bin/env bash
# docs/convergence.png: loss, RSUM and similarities against epochs (Figures 3 and 4 of the Unified paper) on emoji.
set -euo pipefail
python -m tune.search --config configs/papers/unified/convergence.yaml train.epochs=15 "$@"
