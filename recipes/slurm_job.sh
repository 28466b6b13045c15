#!/bin/bash
# Trains one model on several machines under Slurm: sbatch recipes/slurm_job.sh
#
# One task a machine, with all its GPUs. The model folder, the text and this repository lie on a file system that all
# machines share. Submitted again it goes on from the last checkpoint; so does a job that Slurm requeues.

#SBATCH --job-name=sequencing
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.out

# --signal: all tasks get SIGTERM five minutes before time is up, save, and end with code 143.
# --kill-on-bad-exit: where one worker dies, Slurm ends the others at once and need not wait until they notice.

export SEQUENCING_PORT=$((20000 + SLURM_JOB_ID % 10000)) # another job on the same machines takes other ports
srun --kill-on-bad-exit=1 python nmt_train.py --strategy multi_worker \
    --config_file recipes/wmt14_ende.py --config config_wmt14_ende --model_dir runs/wmt14_ende
code=$?
if { [ "$code" = 1 ] || [ "$code" = 137 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
    scontrol requeue "$SLURM_JOB_ID" # a machine was lost, it seems: go on from the last checkpoint, three times at most
fi
exit "$code"
