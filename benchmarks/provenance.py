"""Where a saved result comes from: script, machine, commit, and whether what it measures has changed since.

A benchmark names the sources that it measures in a constant `MEASURES`, paths from the root of the repository.
"""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
SCRIPT_OF = {"continued": "continued_pretraining"}  # results that are not called after their script


def script_of(path: Path) -> Path:
    """Return the script that wrote a result: that of its own name, or with a name that its name begins with."""
    names = path.stem.split("_")
    for length in range(len(names), 0, -1):
        name = "_".join(names[:length])
        script = BENCHMARKS / f"{SCRIPT_OF.get(name, name)}.py"
        if script.exists():
            return script
    raise SystemExit(f"{path}: no script in benchmarks/ has its name. Name the result after its script.")


def measured_paths(script: Path) -> tuple[str, ...]:
    """Return MEASURES of a script, which is parsed and not run."""
    for statement in ast.parse(script.read_text(encoding="utf8")).body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "MEASURES" for target in statement.targets
        ):
            paths: tuple[str, ...] = ast.literal_eval(statement.value)
            return paths
    raise SystemExit(f'{script} does not say what it measures. Add MEASURES = ("src/pretrain/...",).')


def machine_line(result: dict[str, Any]) -> str:
    """Return machine and versions of a result in one line."""
    machine = result["machine"]
    if isinstance(machine, str):  # of an earlier form
        machine = {"processor": machine} | result.get("versions", {})
    counts = [(name, machine.get(name)) for name in ("cores", "threads")]
    cores = ", ".join(f"{n} {name if n > 1 else name[:-1]}" for name, n in counts if n)
    names = [machine.get("gpu", ""), machine["processor"], cores, machine.get("precision", "")]
    versions = [f"{name} {machine[name]}" for name in ("torch", "lightning", "python") if name in machine]
    return f"{', '.join(filter(None, names))}; {', '.join(versions)}"


def command_of(result: dict[str, Any], script: Path) -> str:
    """Return the command that repeats a result."""
    return str(result.get("command") or f"python benchmarks/{script.name}")


def measured_line(path: Path) -> str:
    """Return at which commit a result was measured, marked if the sources that it measures have changed since."""
    commit, date = measured_commit(path)
    paths = measured_paths(script_of(path))
    changed = [each for each in paths if _git("log", "-1", "--format=%h", f"{commit}..HEAD", "--", each)]
    mark = f" **before the last change** of {', '.join(f'`{each}`' for each in changed)}" if changed else ""
    return f"Measured at {commit[:7]} ({date}){mark}."  # git's own short form depends on the clone


def measured_commit(path: Path) -> tuple[str, str]:
    """Return the commit of a measurement and its date: the recorded one, or the last that changed its figures."""
    machine = json.loads(path.read_text(encoding="utf8"))["machine"]
    recorded = machine.get("commit") if isinstance(machine, dict) else None
    changed_figures = ["--follow", "-G[0-9]{4}", "--", str(path)]  # new names of keys have no four digits in a row
    which = [recorded.removesuffix("-dirty")] if recorded else changed_figures
    found = _git("log", "-1", "--format=%H %ad", "--date=short", *which)
    if not re.fullmatch(r"\w+ [\d-]+", found):
        raise SystemExit(f"{path}: git does not know when it was measured. Commit it, in a clone with all history.")
    commit, _, date = found.partition(" ")
    return commit, date


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()
