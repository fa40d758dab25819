#!/bin/bash
@directives@
# Of --signal: the tasks, not this script, are told before the time limit. They save after their
# step, and the end of this script requeues the job.

# What a job or a launcher had set where this was submitted, which sbatch hands on and srun would heed.
unset ${!SLURM_CPU_BIND*} ${!SLURM_MEM_BIND*} ${!SLURM_GPU_BIND*} ${!SLURM_STEP*} ${!TORCHELASTIC*} \
    ${!PL_TRAINER_*} LT_CLI_USED \
    SLURM_DISTRIBUTION SLURM_PROCID SLURM_LOCALID RANK LOCAL_RANK NODE_RANK GROUP_RANK WORLD_SIZE \
    LOCAL_WORLD_SIZE JSM_NAMESPACE_RANK MASTER_ADDR MASTER_PORT STANDALONE_PORT

cd @project@ || exit 1
python=@python@
experiment=@experiment@
accelerator=@accelerator@
@run@
# With a command of its own for both signals the script outlives the tasks that they stop.
trap : TERM USR1

id="$SLURM_JOB_ID"
# The plain id of a task would, for one task of an array, mean the whole array.
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] && id="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
echo "job $id starts on $SLURM_JOB_NODELIST in $DUALSCORE_RUN, restart ${SLURM_RESTART_COUNT:-0}, $(date)"

export DUALSCORE_STOP_FILE="$DUALSCORE_RUN/.stopped"
rm -f "$DUALSCORE_STOP_FILE"
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK" PYTHONUNBUFFERED=1 DUALSCORE_NOTICE=@notice@
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    "$python" -m dualscore.task train "$experiment" "${settings[@]}" \
    trainer.devices="$SLURM_NTASKS_PER_NODE" trainer.nodes="$SLURM_JOB_NUM_NODES" \
    trainer.accelerator="$accelerator"
status=$?

if [ ! -e "$DUALSCORE_STOP_FILE" ]; then
    [ "$status" = 0 ] || echo "job $id failed with status $status; what went wrong stands above" >&2
    exit "$status"
fi
# The tasks left because they were told to. scancel tells them too, and then nothing may bring the job back.
case "$(squeue --noheader --jobs="$id" --format=%T)" in
COMPLETING | CANCELLED)
    echo "job $id was ended from outside; submitted again it goes on"
    exit "$status"
    ;;
esac
echo "job $id is requeued and goes on in $DUALSCORE_RUN, $(date)"
scontrol requeue "$id"
