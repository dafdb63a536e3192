#!/usr/bin/env bash
# A template, untested: two machines with eight GPUs each. sbatch docs/slurm.sh
#SBATCH --job-name=galip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # workers that start again get a store of their own
srun .venv/bin/torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
    -m galiplib.cli train --profile cc12m --out outputs/cc12m/train
