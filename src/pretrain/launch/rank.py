"""What torchrun says to the processes that it starts, checked before anything relies on it.

Source of the variables: https://docs.pytorch.org/docs/stable/elastic/run.html, section "Environment Variables".
`launch/slurm.py` gives the processes of srun the same ones.
"""

import os
import re
import socket
import time

from pretrain.errors import (
    ConfigError,
    show,
)

MOST = 1_000_000  # processes of a run


AGENT_S = 10.0  # for the agent of torchrun to answer: it was there before the processes that it started


_MARK = "TORCHELASTIC_RUN_ID"  # set by torchrun and nothing else


_SMALLEST = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "NODE_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}


_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


_READ_BY_LIBRARIES = ("SLURM_PROCID", "JSM_NAMESPACE_RANK")  # Lightning takes them for the rank as it is imported


def under_launcher() -> bool:
    """Whether torchrun or srun started this process, and others beside it."""
    return _MARK in os.environ


def rank() -> int:
    """Return the number of this process in its run; 0 where no launcher started it."""
    return whole_number("RANK", 0, MOST) if under_launcher() else 0


def whole_number(name: str, least: int, most: int) -> int:
    """Return the value of an environment variable; raises ConfigError where it is no whole number of this range."""
    text = os.environ[name]
    if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise ConfigError(
            f"the environment has {name}={text[:80]!r}, which is no whole number from {least} to {most}. "
            f"Where no launcher has set it: unset {name}"
        )
    return int(text)


def check_launcher() -> None:
    """Look whether the variables of a launcher make sense together; leave none behind where there is no launcher.

    Raises ConfigError where one is missing or nonsense, and where they say that this process is one of several though
    no launcher started it: it would then wait for others, or stay silent and save nothing.
    """
    if under_launcher():
        _check_place()
        return
    given = {name: os.environ[name] for name in _SMALLEST if os.environ.get(name)}
    for name in given:
        whole_number(name, _SMALLEST[name], MOST)
    several = [name for name, text in given.items() if name != "GROUP_RANK" and int(text) != _SMALLEST[name]]
    if several:
        raise ConfigError(
            f"the environment has {', '.join(f'{name}={given[name]}' for name in several)}, as if this process were "
            "one of several, and neither torchrun nor srun started it. Where that is left over: "
            f"unset {' '.join(several)}. For several devices: torchrun --nproc-per-node=2 src/train.py trainer=ddp"
        )
    for name in filter(os.environ.get, _READ_BY_LIBRARIES):
        whole_number(name, 0, MOST)
    for name in (*_SMALLEST, *_READ_BY_LIBRARIES):
        os.environ.pop(name, None)


def _check_place() -> None:
    """Check the place of this process among those that the launcher started."""
    run = os.environ[_MARK][:80]
    for name in _NEEDED:
        if not os.environ.get(name):
            raise ConfigError(
                f"the environment has {_MARK}={run!r}, as torchrun sets it, and no {name}. Where that is left over: "
                f"unset {_MARK}. Else start by torchrun, which sets both."
            )
    world = whole_number("WORLD_SIZE", 1, MOST)
    local = whole_number("LOCAL_WORLD_SIZE", 1, world)
    whole_number("RANK", 0, world - 1)
    whole_number("LOCAL_RANK", 0, local - 1)
    whole_number("MASTER_PORT", 1, 65_535)
    for name in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"):
        if name in os.environ:
            whole_number(name, 0, MOST)
    if world % local:
        raise ConfigError(
            f"the environment has WORLD_SIZE={world} and LOCAL_WORLD_SIZE={local}: a run needs as many processes on "
            "each machine. Try the same torchrun --nproc-per-node on all of them."
        )


def check_agent() -> None:
    """Look whether the torchrun that set the variables is still there to meet the others through.

    Raises ConfigError where nobody listens at its address: the variables were left over by a run that has ended.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # the first process of the run listens, which may come later than this one
    host, port = os.environ["MASTER_ADDR"], whole_number("MASTER_PORT", 1, 65_535)
    until = time.monotonic() + AGENT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=AGENT_S).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"the environment has {_MARK}={os.environ[_MARK][:80]!r}, MASTER_ADDR={host} and MASTER_PORT="
                    f"{port}, as torchrun sets them, and no torchrun answers there ({error}). Where they are left "
                    f"over: unset {_MARK} RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE"
                ) from error
            time.sleep(0.2)


def log(text: str, *, one_line: bool = False) -> None:
    """Print on the first process only, as `show` does."""
    if rank() == 0:
        show(text, one_line=one_line)
