"""Write report.html: of a run, of a folder of runs, or of a corpus. In a process of its own, as a program: this module.

It loads no torch, so that it starts fast and needs little memory beside a run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pretrain.data.curation.manifest import MANIFEST
from pretrain.errors import CheckpointError, PretrainError, message_of, printable, visible
from pretrain.files.atomic_files import write_atomically
from pretrain.launch.run_folder import CONFIG, PAGE, REPORT, TABLE

DEADLINE_S = 60.0  # to render a report at the end of a run
_SOURCES = Path(__file__).parents[2]


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, of a sweep, of a folder of runs, or of a corpus; return its path.

    It goes into the folder or to `output`. Raises CheckpointError if the folder holds none of them, a file of it is
    damaged, or the report cannot be written; DataError for a damaged corpus.
    """
    from pretrain.reports.curation import write_corpus_report  # here: what only starts the process needs none of it
    from pretrain.reports.run import read_run, run_page
    from pretrain.reports.sweep import SWEEP_RECORD, read_sweep, sweep_page

    if os.path.lexists(folder / MANIFEST):
        return write_corpus_report(folder, output)
    if any(os.path.lexists(folder / name) for name in (CONFIG, REPORT, TABLE)):
        text = run_page(read_run(folder))
    elif os.path.lexists(folder / SWEEP_RECORD) or (folder.is_dir() and any(folder.glob(f"*/{CONFIG}"))):
        text = sweep_page(read_sweep(folder), output.parent if output else None)
    else:
        raise CheckpointError(
            f"path={folder} holds no run and no corpus: neither it nor a folder in it has a {CONFIG}, and it has no "
            f"{MANIFEST}. Try path=logs/gpt_nano/<time>."
        )
    path = output or folder / PAGE
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}. Try another output=report.html.") from error
    return path


def write_outside(folder: Path, deadline_s: float = DEADLINE_S) -> str:
    """Write the report of a folder in a process of its own; return what went wrong, empty if nothing did."""
    paths = os.pathsep.join(filter(None, [str(_SOURCES), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "pretrain.reports.write", str(folder)]
    try:
        found = subprocess.run(
            command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {deadline_s:g} s"
    except OSError as error:
        return str(error)
    if not found.returncode:
        return ""
    lines = found.stderr.decode("utf8", "replace").strip().splitlines()
    return visible(lines[-1] if lines else f"its process ended with {found.returncode}", one_line=True)[:500]


if __name__ == "__main__":
    try:
        write_report(Path(sys.argv[1]))
    except PretrainError as problem:
        print(message_of(problem), file=sys.stderr)
        sys.exit(problem.exit_code)
    except Exception as problem:
        print(printable(f"{type(problem).__name__}: {problem}", one_line=True), file=sys.stderr)
        sys.exit(1)
