"""The environment variables of torchrun, checked before anything relies on them.

Source: https://docs.pytorch.org/docs/stable/elastic/run.html, section "Environment Variables". `launch/slurm.py` sets
the same ones for the processes of srun.
"""

import os
import re
import socket
import time

from pretrain.errors import ConfigError, show
from pretrain.program import is_installed

MAX_RANKS = 1_000_000
AGENT_S = 10.0  # timeout for an answer of torchrun's agent, which starts before its processes
_RUN_ID = "TORCHELASTIC_RUN_ID"  # set by torchrun and nothing else
_MINIMA = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "NODE_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_READ_BY_LIBRARIES = ("SLURM_PROCID", "JSM_NAMESPACE_RANK")  # Lightning takes them for the rank as it is imported


def under_launcher() -> bool:
    """Return whether torchrun or srun started this process."""
    return _RUN_ID in os.environ


def rank() -> int:
    """Return the rank of this process in its run; 0 if no launcher started it."""
    return whole_number("RANK", 0, MAX_RANKS) if under_launcher() else 0


def whole_number(name: str, minimum: int, maximum: int) -> int:
    """Return the value of an environment variable; raise ConfigError if it is not a whole number in this range."""
    text = os.environ[name]
    if not re.fullmatch(r"[0-9]{1,12}", text) or not minimum <= int(text) <= maximum:
        raise ConfigError(
            f"the environment has {name}={text[:80]!r}, which is no whole number from {minimum} to {maximum}. "
            f"If no launcher has set it: unset {name}"
        )
    return int(text)


def check_launcher() -> None:
    """Check that a launcher's variables are consistent; without a launcher, delete them.

    Raises ConfigError if one is missing or invalid, or if they make this process one of several though no launcher
    started it: it would wait for the others, or log and save nothing.
    """
    if under_launcher():
        _check_ranks()
        return
    values = {name: os.environ[name] for name in _MINIMA if os.environ.get(name)}
    for name in values:
        whole_number(name, _MINIMA[name], MAX_RANKS)
    several = [name for name, text in values.items() if name != "GROUP_RANK" and int(text) != _MINIMA[name]]
    if several:
        script = "-m pretrain train" if is_installed() else "src/train.py"
        raise ConfigError(
            f"the environment has {', '.join(f'{name}={values[name]}' for name in several)}, as if this process were "
            "one of several, but neither torchrun nor srun started it. If that is left over: "
            f"unset {' '.join(several)}. For several devices: torchrun --nproc-per-node=2 {script} trainer=ddp"
        )
    for name in filter(os.environ.get, _READ_BY_LIBRARIES):
        whole_number(name, 0, MAX_RANKS)
    for name in (*_MINIMA, *_READ_BY_LIBRARIES):
        os.environ.pop(name, None)


def _check_ranks() -> None:
    """Check the ranks and sizes that the launcher has set."""
    run = os.environ[_RUN_ID][:80]
    for name in _REQUIRED:
        if not os.environ.get(name):
            raise ConfigError(
                f"the environment has {_RUN_ID}={run!r}, as torchrun sets it, but no {name}. If that is left over: "
                f"unset {_RUN_ID}. Otherwise start with torchrun, which sets both."
            )
    world = whole_number("WORLD_SIZE", 1, MAX_RANKS)
    local = whole_number("LOCAL_WORLD_SIZE", 1, world)
    whole_number("RANK", 0, world - 1)
    whole_number("LOCAL_RANK", 0, local - 1)
    whole_number("MASTER_PORT", 1, 65_535)
    for name in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"):
        if name in os.environ:
            whole_number(name, 0, MAX_RANKS)
    if world % local:
        raise ConfigError(
            f"the environment has WORLD_SIZE={world} and LOCAL_WORLD_SIZE={local}: a run needs the same number of "
            "processes on each machine. Try the same torchrun --nproc-per-node on all of them."
        )


def check_agent() -> None:
    """Raise ConfigError if no torchrun listens at its address: a run that has ended left the variables."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # rank 0 listens instead, and may start later than this process
    host, port = os.environ["MASTER_ADDR"], whole_number("MASTER_PORT", 1, 65_535)
    until = time.monotonic() + AGENT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=AGENT_S).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"the environment has {_RUN_ID}={os.environ[_RUN_ID][:80]!r}, MASTER_ADDR={host} and MASTER_PORT="
                    f"{port}, as torchrun sets them, but no torchrun answers there ({error}). If they are left over: "
                    f"unset {_RUN_ID} RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE"
                ) from error
            time.sleep(0.2)


def log(text: str, *, one_line: bool = False) -> None:
    """Print a text on rank 0 only, like `show`."""
    if rank() == 0:
        show(text, one_line=one_line)
