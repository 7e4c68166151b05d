#!/usr/bin/env bash
# Margin against scale of the unified objective on emoji: six short runs and a picture of them.
set -euo pipefail
python -m tune.search --config configs/tune/margin_scale.yaml "$@"
