"""The files of the repository for those who carry on: citation, commit hooks, workflow, templates, releases."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import pretrain

ROOT = Path(__file__).parents[1]


def test_the_citation_names_the_version_and_license_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pretrain.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_workflow_runs_what_must_pass_on_linux_and_macos():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert job["steps"][-1]["run"] == ".ci/run"
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_the_commit_hooks_run_tools_that_are_there():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].split() for hook in local["hooks"]]
    assert [entry[0] for entry in entries] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/python"]
    assert (ROOT / entries[-1][1]).exists()


@pytest.mark.slow
def test_outputs_of_a_notebook_are_stripped_and_clean_ones_left_as_they_are(tmp_path: Path):
    source = ROOT / "notebooks" / "01_first_run.ipynb"
    clean, used = tmp_path / "clean.ipynb", tmp_path / "used.ipynb"
    shutil.copy(source, clean)
    notebook = nbformat.read(source, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="seen")], 3
    nbformat.write(notebook, used)
    command = [sys.executable, str(ROOT / ".ci/strip_notebooks.py"), str(clean), str(used)]
    first, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert (first.returncode, first.stderr) == (1, f"outputs deleted: {used}\n")
    assert (again.returncode, again.stderr) == (0, "")
    assert clean.read_text() == used.read_text() == source.read_text()


def test_templates_ask_for_the_doctor():
    folder = ROOT / ".github"
    for path in (folder / "ISSUE_TEMPLATE" / "bug.md", folder / "PULL_REQUEST_TEMPLATE.md"):
        assert "python src/doctor.py" in path.read_text()


def test_contributing_says_how_a_release_is_made_and_its_targets_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"**{part}.**" in text.partition("## Releases")[2] for part in ("Version", "Changelog", "Wheel"))
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
