"""Run checks one after another and record their outcomes; a check that raises counts as failed."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pretrain.doctor.config import Part
from pretrain.errors import Interrupted, PretrainError

SHOWN_LINES = 30  # last lines of the captured output, shown if a check raised


@dataclass(frozen=True)
class CheckResult:
    """Result of a check."""

    passed: bool
    figures: str  # what was compared, and the largest difference


class NotApplicableError(Exception):
    """Raised if a setting leaves nothing to check; the message names the setting."""


@dataclass(frozen=True)
class Check:
    """A check: its name in the table, and the function that runs it."""

    part: Part
    name: str
    test: Callable[[], CheckResult]
    needs_corpus: bool = True
    makes_corpus: bool = False  # if it fails, checks that need a corpus are skipped


class Verdict(Enum):
    """Verdict on a check, as the table prints it."""

    passed = "pass"
    failed = "FAIL"
    skipped = "skip"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a check; `str` returns its row of the table, with captured output below."""

    check: Check
    verdict: Verdict
    figures: str
    seconds: float
    output: str = ""  # printed during the check; empty unless it raised

    def __str__(self) -> str:
        row = f"{self.verdict.value}  {self.check.part.value:<8}  {self.check.name:<38}  {self.figures}"
        lines = self.output.splitlines()[-SHOWN_LINES:]
        return "\n".join([f"{row}  ({self.seconds:.1f} s)", *(f"        | {line}" for line in lines)])


def run_checks(checks: Iterable[Check], log: Path) -> Iterator[Outcome]:
    """Yield the outcome of each check as it finishes; output printed during a check goes to the file `log`.

    Raises Interrupted if a signal ends a check.
    """
    has_corpus = True
    for check in checks:
        if check.needs_corpus and not has_corpus:
            yield Outcome(check, Verdict.skipped, "needs a prepared corpus", 0.0)
            continue
        outcome = _run(check, log)
        if check.makes_corpus:
            has_corpus = outcome.verdict is not Verdict.failed
        yield outcome


def _run(check: Check, log: Path) -> Outcome:
    start = time.monotonic()
    output = ""
    try:
        log.unlink(missing_ok=True)
        with captured(log):
            result = check.test()
        verdict, figures = (Verdict.passed if result.passed else Verdict.failed), result.figures
    except NotApplicableError as reason:
        verdict, figures = Verdict.skipped, str(reason)
    except Interrupted:
        raise
    except Exception as error:
        verdict, figures = Verdict.failed, sentence(error)
        output = log.read_text(encoding="utf8", errors="replace")
    return Outcome(check, verdict, figures, time.monotonic() - start, output)


def sentence(error: Exception) -> str:
    """Return the message of an exception in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PretrainError) else f"{type(error).__name__}: {text[:300]}"


@contextmanager
def captured(log: Path) -> Iterator[None]:
    """Redirect the output of this process and its children from the terminal to the file `log`."""
    with log.open("a", buffering=1, encoding="utf8") as file:  # append: several processes write to the file
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in saved:
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
