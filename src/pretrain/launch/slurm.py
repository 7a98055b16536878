"""Environment variables of srun, translated to those of torchrun.

Source: https://slurm.schedmd.com/srun.html, section "OUTPUT ENVIRONMENT VARIABLES".
"""

import os
import re

from pretrain.errors import ConfigError
from pretrain.launch.rank import MAX_RANKS, under_launcher, whole_number

_TASKS = "SLURM_STEP_NUM_TASKS"
_FIRST_PORT, _PORTS = 29_500, 1_000  # the rendezvous port of a job follows from its number


def adopt_slurm() -> None:
    """Set torchrun's variables from srun's, if srun started this process and torchrun did not.

    Raises ConfigError if the machines have unequal numbers of processes, or a variable is missing, invalid or
    contradicts another.
    """
    environment = os.environ
    if under_launcher() or not environment.get(_TASKS) or whole_number(_TASKS, 1, MAX_RANKS) < 2:
        return
    _check_step()
    tasks, nodes = int(environment[_TASKS]), int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks % nodes or not re.fullmatch(r"\d+(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        raise ConfigError(
            f"srun started {environment['SLURM_STEP_TASKS_PER_NODE']} processes on {nodes} machines, and a run needs "
            "the same number on each. Try srun --ntasks-per-node=8."
        )
    job = int(environment["SLURM_JOB_ID"])
    environment |= {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": environment["SLURM_NODEID"],
        "MASTER_ADDR": first_machine(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(_FIRST_PORT + job % _PORTS),
        "TORCHELASTIC_RUN_ID": f"slurm-{job}",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _check_step() -> None:
    """Check srun's variables for a step of several processes."""
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST"):
        if not os.environ.get(name):
            raise ConfigError(
                f"the environment has {_TASKS}={os.environ[_TASKS]}, as srun sets it, but no {name}. If that is left "
                f"over: unset {_TASKS}. Otherwise start with srun, which sets both."
            )
    tasks = whole_number(_TASKS, 1, MAX_RANKS)
    nodes = whole_number("SLURM_STEP_NUM_NODES", 1, tasks) if "SLURM_STEP_NUM_NODES" in os.environ else 1
    whole_number("SLURM_JOB_ID", 0, 2**32)
    whole_number("SLURM_PROCID", 0, tasks - 1)
    whole_number("SLURM_LOCALID", 0, tasks - 1)
    whole_number("SLURM_NODEID", 0, nodes - 1)
    if os.environ.get("RANK") and os.environ["RANK"] != os.environ["SLURM_PROCID"]:
        raise ConfigError(
            f"the environment has RANK={os.environ['RANK'][:80]!r} and SLURM_PROCID={os.environ['SLURM_PROCID']}, and "
            "the rank of this process cannot be both. If the first is left over: unset RANK"
        )


def first_machine(names: str) -> str:
    """Return the first name of a list in Slurm's short form, such as `gpu[03-07,12],cpu1` or `rack[1-4]node[2,5]`."""
    match = re.match(r"[^,\[]+(?:\[\d[^]]*\][^,\[]*)*", names)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={names} names no machine. Try torchrun instead of srun.")
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", match[0])
