"""A run that srun started, one process for each device: Slurm's words for it become those of torchrun.

Source of the variables: https://slurm.schedmd.com/srun.html, section "OUTPUT ENVIRONMENT VARIABLES".
"""

import os
import re

from pretrain.errors import ConfigError

_FIRST_PORT, _PORTS = 29_500, 1_000  # where the processes of a job meet, by its number


def adopt_slurm() -> None:
    """Give this process its place among those that srun started, where it did and torchrun did not.

    Raises ConfigError where the machines have unequal numbers of processes.
    """
    given = os.environ
    if int(given.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "RANK" in given:
        return
    tasks, nodes = int(given["SLURM_STEP_NUM_TASKS"]), int(given.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks % nodes or not re.fullmatch(r"\d+(\(x\d+\))?", given.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        raise ConfigError(
            f"srun started {given['SLURM_STEP_TASKS_PER_NODE']} processes on {nodes} machines, and a run needs as many "
            "on each. Try srun --ntasks-per-node=8."
        )
    job = int(given["SLURM_JOB_ID"])
    os.environ |= {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": given["SLURM_NODEID"],
        "MASTER_ADDR": first_machine(given["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(_FIRST_PORT + job % _PORTS),
        "TORCHELASTIC_RUN_ID": f"slurm-{job}",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def first_machine(names: str) -> str:
    """Return the first name of a list as Slurm shortens it, such as `gpu[03-07,12],cpu1`."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^]]*\]([^,]*))?", names)
    if found is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={names} names no machine. Try torchrun in place of srun.")
    return "".join(filter(None, found.groups()))
