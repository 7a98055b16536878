"""A run that srun started, one process for each device: Slurm's words for it become those of torchrun.

Source of the variables: https://slurm.schedmd.com/srun.html, section "OUTPUT ENVIRONMENT VARIABLES".
"""

import os
import re

from pretrain.errors import ConfigError
from pretrain.launch.rank import MOST, under_launcher, whole_number

_TASKS = "SLURM_STEP_NUM_TASKS"


_FIRST_PORT, _PORTS = 29_500, 1_000  # where the processes of a job meet, by its number


def adopt_slurm() -> None:
    """Give this process its place among those that srun started, where it did and torchrun did not.

    Raises ConfigError where the machines have unequal numbers of processes, and where a variable is missing, nonsense
    or at odds with another.
    """
    given = os.environ
    if under_launcher() or not given.get(_TASKS) or whole_number(_TASKS, 1, MOST) < 2:
        return
    _check_step()
    tasks, nodes = int(given[_TASKS]), int(given.get("SLURM_STEP_NUM_NODES", "1"))
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


def _check_step() -> None:
    """Check the variables of a step of several processes before they are taken for this process's place."""
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST"):
        if not os.environ.get(name):
            raise ConfigError(
                f"the environment has {_TASKS}={os.environ[_TASKS]}, as srun sets it, and no {name}. Where that is "
                f"left over: unset {_TASKS}. Else start by srun, which sets both."
            )
    tasks = whole_number(_TASKS, 1, MOST)
    nodes = whole_number("SLURM_STEP_NUM_NODES", 1, tasks) if "SLURM_STEP_NUM_NODES" in os.environ else 1
    whole_number("SLURM_JOB_ID", 0, 2**32)
    whole_number("SLURM_PROCID", 0, tasks - 1)
    whole_number("SLURM_LOCALID", 0, tasks - 1)
    whole_number("SLURM_NODEID", 0, nodes - 1)
    if os.environ.get("RANK") and os.environ["RANK"] != os.environ["SLURM_PROCID"]:
        raise ConfigError(
            f"the environment has RANK={os.environ['RANK'][:80]!r} and SLURM_PROCID={os.environ['SLURM_PROCID']}, and "
            "both give this process its number. Where the first is left over: unset RANK"
        )


def first_machine(names: str) -> str:
    """Return the first name of a list as Slurm shortens it, such as `gpu[03-07,12],cpu1`."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^]]*\]([^,]*))?", names)
    if found is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={names} names no machine. Try torchrun in place of srun.")
    return "".join(filter(None, found.groups()))
