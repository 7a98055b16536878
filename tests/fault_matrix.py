"""The table of `make faults`: a row per fault, how often it was injected, and what was lost."""

from collections import Counter
from collections.abc import Iterable

import pytest

FAULTS = {
    "F01": "SIGKILL at random moments, resumed until done: bit for bit the undisturbed run",
    "F02": "SIGKILL inside each phase of a save, sync and async: a valid checkpoint is always there",
    "F03": "every file of a checkpoint truncated, flipped, removed; manifests that do not hold",
    "F04": "disk full before and amid a save: exit 4, what was saved stays valid",
    "F05": "run folder that cannot be written, from the start or later: exit 4",
    "F06": "SIGTERM, SIGINT, SIGUSR1: saved, ended within 30 s, resumed bit for bit",
    "F07": "a process of several lost: the others end, it is named; brought back where asked",
    "F08": "a gradient that is not finite, on one process or all: skipped by all, ten in a row end the run",
    "F09": "token store truncated, flipped, with wrong index or ids: exit 3 naming the file",
    "F10": "another tokenizer or other data than the run's: refused before the first step",
    "F11": "1, 2 processes, DDP, FSDP2, workers, micro-batches: the same rows and losses",
    "F12": "two runs on one folder; a lock whose holder was killed",
    "F13": "a loader process that is killed or raises: told, nothing hangs",
    "F14": "garbage corpora: each bad document counted by reason, none crashes",
    "F15": "prepare killed at random and run again: byte for byte the same store",
    "F16": "a process that never joins, a port in use",
    "F17": "a sweep with failing jobs: the others complete, finished ones are skipped",
    "F18": "the wall clock jumps: nothing changes",
    "F19": "checkpoints of newer versions are refused by name",
}
_NAME = "fault"


def note(item: pytest.Item) -> None:
    """Have the reports of a marked test carry its faults, also from another process."""
    for mark in item.iter_markers(_NAME):
        item.user_properties.append((_NAME, mark.args[0]))


def table(passed: Iterable[pytest.TestReport], failed: Iterable[pytest.TestReport]) -> list[str]:
    """Return the matrix as lines, from the reports of the tests that ran."""
    good, bad = (
        Counter(value for report in reports for name, value in report.user_properties if name == _NAME)
        for reports in (passed, failed)
    )
    lines = [f"{'fault':<6} {'cases':>5} {'lost':>5}  what was injected, and what is promised"]
    for number, what in FAULTS.items():
        cases, lost = good[number] + bad[number], bad[number]
        lines.append(
            f"{number:<6} {cases or '-':>5} {lost if cases else '-':>5}  {what}{'' if cases else ' (not yet)'}"
        )
    return lines
