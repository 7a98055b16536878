"""Damaged files of every kind give an exit code and one line, in bounded time and memory.

PRETRAIN_FUZZ_CASES, _FIRST, _SEED and _KINDS (a pattern) choose how many cases and which; `make test-long` runs more.
PRETRAIN_FUZZ_LOG names a file for what is found, written as it is found.
"""

import collections
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.mutations import Mutation, copy_anew, mutations, snapshot
from fuzz.signing import sign_again
from fuzz.targets import MAY_WRITE, TARGETS, WRITES, Target, build, commands

SECONDS, MEMORY = 20, 1 << 30  # of a processor for a command; memory above that of the process it is forked from
HUNG = 60  # seconds by the clock, on a machine that may be busy
EXIT_CODES = {0, 2, 3, 4, 5}
USUAL, MANY = 40, 2500  # cases of `make test` and of `make test-long`
_ERROR = re.compile(r"(Config|Data|Checkpoint|Divergence)Error: \S")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\udc80-\udcff]")


class Warm:
    """The process whose children run the commands."""

    def __init__(self, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_process.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip

    def ask(self, script: str, words: list[str]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"script": script, "words": words, "folder": str(self.folder / "case"), "seconds": HUNG}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def run(self, script: str, *words: str) -> None:
        found = self.ask(script, list(words))
        assert found["code"] == 0, found


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Return the warm process, with all files made in `template`; a case stands in `case`, where they were made."""
    folder = tmp_path_factory.mktemp("fuzz")
    found = Warm(folder)
    with found.process:  # which ends as its input is closed
        build(folder / "case", found.run)
        copy_anew(folder / "case", folder / "template")
        yield found


def cases(template: Path, outside: Path, seed: int) -> Iterator[tuple[Target, str, str, Mutation]]:
    """Yield for ever: a target with its file, a command that reads it and a mutation; every target in turn."""
    draw = random.Random(seed)
    targets = []
    for target in TARGETS:
        if not re.search(os.environ.get("PRETRAIN_FUZZ_KINDS", ""), target.kind):
            continue
        file = min(template.glob(target.file))
        changes = mutations(file, outside, random.Random(f"{seed} {target.file}"))
        targets.append((target, str(file.relative_to(template)), changes, itertools.cycle(target.commands)))
    while True:
        draw.shuffle(targets)
        for target, file, changes, names in targets:
            for _ in range(target.turns):
                yield target, file, next(names), next(changes)


def faults_of(found: dict[str, Any], before: dict[str, str], after: dict[str, str], command: str) -> list[str]:
    """Return what a command did that it must not do, given the files before it and after it."""
    faults = []
    errors = [line for line in found["err"].split("\n") if _ERROR.match(line)]
    allowed = EXIT_CODES | ({1} if command == "doctor" else set())
    if found["hung"] or found["seconds"] > SECONDS:
        faults.append(f"took {found['seconds']:.0f} s of a processor, and did{' not' * found['hung']} end by itself")
    elif found["code"] not in allowed:
        faults.append(f"exit code {found['code']}")
    if "Traceback" in found["err"] + found["out"] or "panicked" in found["err"]:
        faults.append("a traceback")
    if found["code"] in (2, 3, 4, 5) and len(errors) != 1:
        faults.append(f"{len(errors)} error lines")
    if found["code"] == 0 and errors:
        faults.append("an error and exit code 0")
    if match := _CONTROL.search(found["out"] + found["err"]):
        faults.append(f"prints {match[0]!r}")
    if max(map(len, (found["out"] + found["err"]).split("\n"))) > 20_000:
        faults.append("a line of more than 20,000 characters")
    if found["bytes"] > MEMORY:
        faults.append(f"takes {found['bytes'] / 2**20:,.0f} MiB")
    may = MAY_WRITE + WRITES.get(command, ())
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    written = sorted(name for name in changed if not f"{name}/".startswith(may))
    if written:
        faults.append(f"writes {written[:3]}")
    return faults


def run_case(
    warm: Warm, file: str, command: str, mutation: Mutation, *, signed: bool = False
) -> tuple[list[str], dict[str, Any]]:
    folder = warm.folder / "case"
    copy_anew(warm.folder / "template", folder)
    mutation.apply(folder / file)
    if signed:
        sign_again(folder / file)
    before = snapshot(folder)
    found = warm.ask(*commands(folder)[command])
    return faults_of(found, before, snapshot(folder), command), found


class Found:
    """What the cases so far have come to."""

    def __init__(self) -> None:
        self.codes: collections.Counter[tuple[str, int]] = collections.Counter()
        self.bad: list[str] = []

    def note(self, kind: str, case: str, faults: list[str], found: dict[str, Any]) -> None:
        self.codes[kind, found["code"]] += 1
        if faults:
            told = " | ".join(found["err"].strip().splitlines()[-6:])[-600:]
            self.bad.append(f"{case}: {'; '.join(faults)}\n    {told!r}")
            log(self.bad[-1])

    def table(self) -> str:
        rows = [f"{kind:<24} exit code {code:>3}  {times:>5}" for (kind, code), times in sorted(self.codes.items())]
        return "\n".join([*rows, f"{self.codes.total()} cases, {len(self.bad)} with a fault"])


def log(text: str) -> None:
    """Append to the file that the environment names."""
    if path := os.environ.get("PRETRAIN_FUZZ_LOG"):
        with Path(path).open("a") as lines:
            lines.write(f"{text}\n")


def fuzz(warm: Warm, count: int, seed: int, first: int = 0) -> None:
    """Run cases; fails with the list of those that did something they must not do."""
    signing, found = random.Random(seed), Found()
    chosen = cases(warm.folder / "template", warm.folder / "case" / "outside", seed)
    try:
        for number, (target, file, command, mutation) in enumerate(itertools.islice(chosen, first + count)):
            signed = signing.random() < 0.7
            if number >= first:
                case = f"{number}: {command} of {file}{' (signed)' if signed else ''}: {mutation.name}"
                found.note(target.kind, case, *run_case(warm, file, command, mutation, signed=signed))
    finally:
        log(found.table())
    print(found.table())
    assert not found.bad, f"{len(found.bad)} of {count} cases:\n" + "\n".join(found.bad)


@pytest.mark.long
def test_what_is_not_damaged_is_read(warm: Warm):
    bad = []
    known = commands(warm.folder / "case")
    named = {name for target in TARGETS for name in target.commands}
    assert named <= known.keys()
    nothing = Mutation("nothing", lambda path: None)
    for name in sorted(named):
        faults, found = run_case(warm, "home", name, nothing)
        if faults or found["code"]:
            bad.append((name, faults, found))
    assert not bad, bad


@pytest.mark.long
def test_damaged_files_end_in_one_line(warm: Warm):
    count = int(os.environ.get("PRETRAIN_FUZZ_CASES", USUAL))
    fuzz(warm, count, int(os.environ.get("PRETRAIN_FUZZ_SEED", "0")), int(os.environ.get("PRETRAIN_FUZZ_FIRST", "0")))


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_thousands_of_damaged_files(warm: Warm):
    fuzz(warm, MANY, seed=1)


FINE = {"code": 0, "out": "fine\n", "err": "", "seconds": 0.1, "hung": False, "bytes": 1000}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": 1}, "exit code 1"), ({"code": -9}, "exit code -9"), ({"code": 3}, "0 error lines"),
        ({"code": 3, "err": "DataError: a\nDataError: b\n"}, "2 error lines"),
        ({"err": "Traceback (most recent call last):\n"}, "a traceback"),
        ({"err": "thread panicked at\n"}, "a traceback"),
        ({"err": "DataError: a\n"}, "an error and exit code 0"), ({"out": "a\x1b[31m"}, "prints '\\x1b'"),
        ({"out": "\u202e"}, "prints '\\u202e'"), ({"seconds": 21.0}, "took 21 s of a processor, and did end by itself"),
        ({"hung": True}, "took 0 s of a processor, and did not end by itself"), ({"bytes": 3 << 30}, "takes 3,072 MiB"),
        ({"out": "x" * 30_000}, "a line of more than 20,000 characters"),
    ],
)  # fmt: skip
def test_each_fault_is_seen(change: dict[str, Any], fault: str):
    assert faults_of(FINE | change, {}, {}, "generate") == [fault]


@pytest.mark.slow
def test_each_file_that_is_written_is_seen():
    before = {"outside": "folder", "outside/target.txt": "a", "run": "folder", "cache": "folder"}
    assert faults_of(FINE, before, before | {"cache/x": "b"}, "generate") == []
    assert faults_of(FINE, before, before | {"outside/target.txt": "b"}, "generate") == [
        "writes ['outside/target.txt']"
    ]
    assert faults_of(FINE, before, before | {"run/x": "b"}, "generate") == ["writes ['run/x']"]
    assert faults_of(FINE, before, before | {"run/x": "b"}, "resume") == []
    del before["cache"]
    assert faults_of(FINE, before | {"run/y": "c"}, before, "eval") == ["writes ['run/y']"]
