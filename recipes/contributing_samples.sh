#!/usr/bin/env bash
# docs/analysis.md: six models of the emoji recipe, then which samples contribute to their objectives.
# Further arguments go to every training, e.g. data.root=/data/emoji.
set -euo pipefail
train() { python -m distributed.train --config configs/emoji.yaml "$@"; }

train "$@" run.name=unified
train "$@" run.name=nt_xent objective.name=nt_xent objective.temperature=0.05
train "$@" run.name=smooth_ap objective.name=smooth_ap objective.temperature=0.01 data.captions_per_image=5
train "$@" run.name=triplet objective.name=triplet objective.margin=0.2
train "$@" run.name=triplet_hn_5 objective.name=triplet_hn objective.margin=0.2 train.triplet_warmup_epochs=5
train "$@" run.name=triplet_hn_1 objective.name=triplet_hn objective.margin=0.2 train.triplet_warmup_epochs=1

for run in unified nt_xent smooth_ap triplet triplet_hn_5 triplet_hn_1; do
    python -m distributed.embed --run "runs/$run" --split train --out "analysis/embeddings/$run" --overwrite
done
python -m allpairs.analysis counts --embeddings analysis/embeddings/* --out analysis --overwrite
python -m allpairs.analysis table analysis/counts.json
