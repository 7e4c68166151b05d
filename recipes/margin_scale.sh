#!/usr/bin/env bash
# Margin and scale of the unified objective on emoji beside VLC and triplet_hn: the Unified paper's Figure 5.
set -euo pipefail
python -m tune.search --config configs/tune/margin_scale.yaml "$@"
