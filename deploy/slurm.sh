#!/bin/bash
# A training run, or a search, on SLURM. Requeued or submitted again it is the same command, and goes on where it stood:
#
#   sbatch --nodes=2 deploy/slurm.sh distributed.train --config configs/emoji.yaml \
#       run.dir=/shared/runs data.root=/shared/data/emoji cluster.workers=2 cluster.cpus_per_worker=6
#
# From the root of a checkout that all nodes see (with its .venv, where there is one). `scancel --batch --signal=TERM JOB`
# stops it with a checkpoint; a plain scancel, and a preemption without PreemptParameters=send_user_signal, end Ray's
# processes too, and the run goes on from its last checkpoint.
#
#SBATCH --job-name=allpairs
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
##SBATCH --gpus-per-node=1        (one # less where there are GPUs)
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#
# --exclusive: Ray's ports are free. --requeue: after a lost node or a preemption SLURM queues the job again; at the end
# of its time this script does. --signal: three minutes before that, to this script alone, since Ray has to live on until
# the run has saved.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch deploy/slurm.sh distributed.train --config configs/NAME.yaml [section.key=value ...]" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

export RAY_AUTH_MODE=token
if [ ! -s ~/.ray/auth_token ]; then
    ray get-auth-token --generate >/dev/null
    chmod 600 ~/.ray/auth_token
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$head:$((20000 + SLURM_JOB_ID % 10000))
steps=()
trap 'if [ ${#steps[@]} -gt 0 ]; then kill "${steps[@]}" 2>/dev/null || true; wait "${steps[@]}" 2>/dev/null || true; fi' EXIT

# --cpus-per-task again: steps don't inherit it, and would be bound to one CPU.
cpus=$SLURM_CPUS_PER_TASK
srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$head" --overlap \
    ray start --head --block --port="${address##*:}" --num-cpus="$cpus" --resources='{"tune_driver": 8}' &
steps+=($!)
until ray status --address "$address" >/dev/null 2>&1; do
    kill -0 "${steps[0]}" 2>/dev/null || { echo "Ray's head did not start on $head" >&2; exit 1; }
    sleep 2
done
if [ "$SLURM_NNODES" -gt 1 ]; then
    others=$((SLURM_NNODES - 1))
    srun --nodes=$others --ntasks=$others --ntasks-per-node=1 --cpus-per-task="$cpus" --exclude="$head" --overlap \
        ray start --address="$address" --block --num-cpus="$cpus" &
    steps+=($!)
fi

# In the background, so that a signal reaches it through this script. It waits for the workers' nodes by itself.
RAY_ADDRESS=$address python -m "$@" --resume auto &
run=$!
requeue=
trap 'requeue=yes; kill -TERM "$run" 2>/dev/null || true' USR1
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT
status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run: it saves now
    status=0
    wait "$run" || status=$?
done
if [ -n "$requeue" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
