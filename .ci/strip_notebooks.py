"""Delete outputs and execution counts of notebooks: `python .ci/strip_notebooks.py NOTEBOOK...`.

The exit code is 1 if a notebook had any, so that a commit hook stops and the change can be looked at.
"""

import sys
from pathlib import Path

import nbformat


def strip(path: Path) -> bool:
    """Return whether the notebook had outputs or counts; it has none any more."""
    notebook = nbformat.read(path, as_version=4)
    had = False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            had |= bool(cell.outputs) or cell.execution_count is not None
            cell.outputs, cell.execution_count = [], None
    if had:
        nbformat.write(notebook, path)
    return had


if __name__ == "__main__":
    stripped = [name for name in sys.argv[1:] if strip(Path(name))]
    sys.exit(f"outputs deleted: {', '.join(stripped)}" if stripped else 0)
