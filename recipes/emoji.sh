#!/usr/bin/env bash
# README, "Real data": RSUM 440.4 on the test split of data/emoji. About 12 minutes on two cores.
set -euo pipefail
python -m distributed.train --config configs/emoji.yaml "$@"
