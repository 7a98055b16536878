"""List all checks of a run, cheap ones first; run them and print their outcomes."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from pretrain.config.run import RunConfig
from pretrain.config.stages import stages_of_other_rows
from pretrain.doctor import coordinates, corpus, machine
from pretrain.doctor.check import Check, CheckResult, Outcome, Verdict, run_checks
from pretrain.doctor.config import Part
from pretrain.doctor.context import Context
from pretrain.doctor.parallel import SharedRuns
from pretrain.doctor.resume import ResumedRuns
from pretrain.doctor.shrink import shrink
from pretrain.errors import printable

_OF_ROWS: dict[str, Callable[[Context], CheckResult]] = {
    "each document is packed once": corpus.packed_once,
    "each row is read once per epoch": corpus.order_is_a_permutation,
    "the mixture has its weights": corpus.mixture_shares,
}
_OF_DATA: dict[str, Callable[[Context], CheckResult]] = {
    "every file matches its sha256": corpus.files_verify,
    "the tokenizer round trip keeps text": corpus.round_trip,
    "no special token inside a document": corpus.special_tokens_apart,
    **_OF_ROWS,
}


def checks(context: Context, part: Part) -> list[Check]:
    """Return the checks of one part, or of all parts; checks share the small runs that they compare."""
    resumed, shared = ResumedRuns(context), SharedRuns(context)
    prepared = partial(corpus.prepared, context)
    all_checks = [
        Check(Part.machine, "library versions", partial(machine.versions, context), needs_corpus=False),
        Check(Part.machine, "the requested device exists", partial(machine.device, context), needs_corpus=False),
        Check(
            Part.resume, "the checkpoint to resume is intact", partial(machine.own_checkpoint, context),
            needs_corpus=False,
        ),
        Check(Part.data, "the corpus is prepared", prepared, needs_corpus=False, makes_corpus=True),
    ]  # fmt: skip
    all_checks += [Check(Part.data, name, partial(test, context)) for name, test in _OF_DATA.items()]
    all_checks += _of_stages(context)
    all_checks += [
        Check(Part.machine, "gradients match float64 eager ones", partial(machine.gradients, context)),
        Check(Part.machine, "checkpoints fit on the disk", partial(machine.disk_space, context)),
        Check(Part.mup, "steps change every width alike", partial(coordinates.steps_change_every_width_alike, context)),
        Check(Part.resume, "resumed equals uninterrupted", resumed.goes_on_exactly),
        Check(Part.resume, "prefetch changes nothing", resumed.prefetch_changes_nothing),
        Check(Part.resume, "a damaged checkpoint is detected", resumed.damage_is_noticed),
        Check(Part.parallel, "2 micro-batches equal 1", shared.accumulation),
        Check(Part.parallel, "2 processes (DDP) equal 1", shared.ddp),
        Check(Part.parallel, "2 processes (FSDP2) equal 1", shared.fsdp),
        Check(Part.parallel, "2 processes (tensor parallel) equal 1", shared.tensor),
        Check(Part.parallel, "2 processes (context parallel) equal 1", shared.context_parallel),
    ]
    return [check for check in all_checks if part in (Part.all, check.part) or check.makes_corpus]


def _of_stages(context: Context) -> list[Check]:
    """Return the checks of the corpus of each stage with other rows than the run; of the same text, of its rows."""
    config, found = context.config, list[Check]()
    for stage in stages_of_other_rows(config):
        of_stage = Context(stage.config, context.folder, config.data)
        tests = _OF_ROWS if stage.text == "" else {"the corpus is prepared": corpus.prepared, **_OF_DATA}
        found += [Check(Part.data, f"{stage.name}: {name}", partial(test, of_stage)) for name, test in tests.items()]
    return found


def examine(config: RunConfig, part: Part) -> bool:
    """Print a row for each check as it finishes and a summary; return True if none failed.

    Deletes all its files except the prepared corpus. Raises ConfigError for a run that fine-tunes and, unless `part` is
    `data`, for a model that cannot be scaled down; Interrupted if a signal ends a small run.
    """
    if part is not Part.data:
        shrink(config)  # before any check, so that the error is reported at once
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
    """Limit torch to one thread: on tensors this small, several threads mostly wait for each other."""
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
