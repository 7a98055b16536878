#!/bin/bash
# One run on the GPUs of several machines:  sbatch configs/slurm.sh model=llama_1b tokenizer.vocab_size=32000 trainer=fsdp parallel.replicas=2
# Two minutes before its time is up, or when it is preempted, the run saves; the job is queued again and goes on exactly
# where it stopped. RUN_DIR=<folder on a disk that all machines see> names the run folder, else one is named by the job.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=logs/slurm-%j.txt

folder="${RUN_DIR:-logs/slurm-$SLURM_JOB_ID}"
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" src/train.py "$@" "paths.run_dir=$folder" resume=auto
code=$?
if [ "$code" -eq 143 ]; then # saved after a signal: there is more to do
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
