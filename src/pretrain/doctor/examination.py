"""All checks of a run, cheap ones first, printed one by one."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from pretrain.config.run import RunConfig
from pretrain.doctor import corpus, machine
from pretrain.doctor.check import Check, CheckResult, Outcome, Verdict, run_checks
from pretrain.doctor.config import Part
from pretrain.doctor.context import Context
from pretrain.doctor.parallel import SharedRuns
from pretrain.doctor.resume import ResumedRuns
from pretrain.errors import printable

_OF_DATA: dict[str, Callable[[Context], CheckResult]] = {
    "every file is as it was written": corpus.files_verify,
    "tokens become text and tokens again": corpus.round_trip,
    "no text holds a special token": corpus.special_tokens_apart,
    "each document is packed once": corpus.packed_once,
    "each row is read once an epoch": corpus.order_is_a_permutation,
    "sources have their shares": corpus.mixture_shares,
}


def checks(context: Context, part: Part) -> list[Check]:
    """Return the checks of one part, or of all; runs that several checks compare are made once."""
    resumed, shared = ResumedRuns(context), SharedRuns(context)
    prepared = partial(corpus.prepared, context)
    found = [
        Check(Part.machine, "versions of the libraries", partial(machine.versions, context), needs_corpus=False),
        Check(Part.machine, "the device asked for is there", partial(machine.device, context), needs_corpus=False),
        Check(
            Part.resume, "the run's own checkpoint verifies", partial(machine.own_checkpoint, context),
            needs_corpus=False,
        ),
        Check(Part.data, "the corpus is prepared", prepared, needs_corpus=False, makes_corpus=True),
    ]  # fmt: skip
    found += [Check(Part.data, name, partial(test, context)) for name, test in _OF_DATA.items()]
    found += [
        Check(Part.machine, "kernels give the plain gradients", partial(machine.gradients, context)),
        Check(Part.machine, "the disk has room for checkpoints", partial(machine.disk_space, context)),
        Check(Part.resume, "a resumed run is the uninterrupted one", resumed.goes_on_exactly),
        Check(Part.resume, "batches assembled ahead change nothing", resumed.prefetch_changes_nothing),
        Check(Part.resume, "a damaged checkpoint is noticed", resumed.damage_is_noticed),
        Check(Part.parallel, "2 micro-batches are 1", shared.accumulation),
        Check(Part.parallel, "2 processes (DDP) are 1", shared.ddp),
        Check(Part.parallel, "2 processes (FSDP2) are 1", shared.fsdp),
        Check(Part.parallel, "2 processes (tensor parallel) are 1", shared.tensor),
    ]
    return [check for check in found if part in (Part.all, check.part) or check.makes_corpus]


def examine(config: RunConfig, part: Part) -> bool:
    """Print a row for each check as it finishes and a summary; return True if none failed.

    Deletes everything it makes except the prepared corpus. Raises ConfigError where the model cannot be made small,
    Interrupted where a signal ends a small run.
    """
    start, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="doctor-") as name, _one_thread():
        folder = Path(name)
        for outcome in run_checks(checks(Context(config, folder), part), folder / "output.txt"):
            print(printable(outcome), flush=True)
            outcomes.append(outcome)
    print(printable(_summary(outcomes, time.monotonic() - start)))
    return not any(outcome.verdict is Verdict.failed for outcome in outcomes)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: on tensors this small, several threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summary(outcomes: list[Outcome], seconds: float) -> str:
    names = {verdict: [o.check.name for o in outcomes if o.verdict is verdict] for verdict in Verdict}
    counts = ", ".join(
        f"{len(names[verdict])} {word}"
        for verdict, word in (
            (Verdict.passed, "passed"),
            (Verdict.failed, "failed"),
            (Verdict.skipped, "skipped"),
        )
    )
    failed = f"\nfailed: {'; '.join(names[Verdict.failed])}" if names[Verdict.failed] else ""
    return f"\n{counts}, in {seconds:.0f} s{failed}"
