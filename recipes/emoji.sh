#!/usr/bin/env bash
# README, "Real data": RSUM 444.1 on the test split of data/emoji. About 10 minutes on two cores.
set -euo pipefail
python -m distributed.train --config configs/emoji.yaml "$@"
