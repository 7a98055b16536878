"""Every notebook runs completely at small size, and its text matches its output."""

import os
import re
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PICTURES = {
    "01_first_run": {},
    "02_look_at_the_data": {"image/png": 4, "text/html": 1},
    "03_inside_the_model": {"image/png": 8},
    "04_read_a_sweep": {"image/png": 1},
    "05_export_and_use": {},
    "06_curate": {},
}
PRINTED = {  # regular expressions
    "01_first_run": ["Report", "bits per byte", "cannot fill masks", r"validation loss \d\.\d+ after 1 steps"],
    "02_look_at_the_data": [
        "decoded again, the same text: True",
        r"1,024 +best_fit +0\.\d+% +[1-9][\d.]*% +0\.0%\n",  # cuts only what is longer than a row
        r"1,024 +concat +0\.\d+% +[1-9][\d.]*% +[1-9][\d.]*%\n",
        "different documents that may attend: 0\n",
        r"token +29\.\d% +[78]\d\.\d% +\d+\.\d% +\d+\.\d% +1\.\d+\n",
        r"span +2\d\.\d% +[78]\d\.\d% +\d+\.\d% +\d+\.\d% +[3-5]\.\d+\n",
        r"step 7 again +identical: True",
        r"step 7 as 2 micro-batches +identical: True",
        r"step 7 of a stream made anew +identical: True",
        r"step 8 +identical: False",
        r"step 7 with another seed +identical: False",
        "exactly once in an epoch: True",
    ],
    "03_inside_the_model": [
        "later tokens that a causal model sees: 0\n",
        "with window 8: 8 causal, 9 in both directions",
        r"(?s)Report.*trained +3 steps.*Report.*trained +6 steps",
        r"(?s)(the layers' own: True.*){3}",
        "attention to later tokens: 0%",
        r"attention to later tokens: [45]\d%",
        r"causal: earlier positions changed: 0 of [1-9]\d*, itself and later: (\d+) of \1, other documents: 0 of [1-9]",
        r"bidirectional: earlier positions changed: (\d+) of \1, itself and later: (\d+) of \2, other documents: 0 of",
        "the same 500 positions later: True",
        r"(?s)(by the formula the same: True.*){5}",
        r"sum to 1\.000",
    ],
    "04_read_a_sweep": [
        r"(?m)^\* +optimizer\.learning_rate=0\.0\d+ +\d+\.\d{4} +0 ",
        r"(?m)^ +0\.001( +[\d.,]+){4}\n +0\.01( +[\d.,]+){4}\n",
        r"lowest validation loss: learning_rate=0\.\d+, of 2 runs",
        "widen the range",
    ],
    "05_export_and_use": [
        r"LlamaForCausalLM 1,\d{3},\d{3} parameters",
        "the same token ids: True",
        r"largest difference of a logit: \d\.\de-\d\d, of logits up to",
        "equal logits: True",
        "the same text from transformers: True",
        "the same text again: True",
    ],
    "06_curate": [
        r"equal +20 documents planted",
        r"removed +\d+ +\d\.\d% +exact duplicates",
        r"junk that stays: 0\n",
        r"removed by  near\b",
        r"similarity of removed near-duplicates: 0\.[89]\d* or more",
        "every one has a twin that stays: True",
        r"words with a letter >= 0\.6: +\d+ good, +0 junk",
        "report: True",
        r"## Training data(?s:.*)\| docs \| PSF-2\.0 \| 290 \|",
    ],
}


def test_the_notebooks_are_found():
    assert [path.stem for path in NOTEBOOKS] == list(PICTURES) == list(PRINTED)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PRETRAIN_NOTEBOOK_STEPS", "3")
    monkeypatch.setenv("PRETRAIN_NOTEBOOK_LOGS", str(tmp_path))
    monkeypatch.setenv("PRETRAIN_NOTEBOOK_RATES", "0.001,0.01")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    for pattern in PRINTED[path.stem]:
        assert re.search(pattern, text), f"{pattern!r} was not printed:\n{text}"
    shown = Counter(kind for output in outputs for kind in output.get("data", {}) if kind != "text/plain")
    assert shown == PICTURES[path.stem]


def test_notebooks_are_committed_without_output():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert all(
            not cell.get("outputs") and cell.get("execution_count") is None for cell in cells if "outputs" in cell
        )
