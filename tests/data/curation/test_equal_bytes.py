"""All stages at once give equal bytes with 1, 2 and 4 processes; what needs the extra is in tests/extras."""

import hashlib
import json
from pathlib import Path

import pytest
from curation_documents import lines, settings

from pretrain.data.curation.curate import curate


def files_of(output: Path) -> dict[str, str]:
    """Return the hash of every file of a corpus but timings and work."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.relative_to(output).parts[0] != "work"]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name != "timings.json"
    }


@pytest.mark.long
def test_every_stage_gives_equal_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    """Duplicates, paragraphs, personal data, quality, toxicity and evaluation items, each of which finds something."""
    texts = [json.loads(line)["text"] for line in lines(60).splitlines()]
    mails = [f"Write to someone{n}@example.org. Spam and more spam. {text}" for n, text in enumerate(texts[:9])]
    raw = tmp_path / "raw"
    (raw / "web").mkdir(parents=True)
    parts = {f"web/{number}": (texts + mails)[number::6] for number in range(6)}  # a file is a unit or more
    for name, documents in (parts | {"reference": texts[40:]}).items():
        (raw / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    item = " ".join(texts[20].split()[10:40])
    (raw / "items.jsonl").write_text(json.dumps({"question": item}) + "\n")
    (raw / "words.txt").write_text("spam\n")
    words = (
        f"decontaminate.sets=[{raw}/items.jsonl]", "decontaminate.fields=[question]", "personal_data.kinds=[email]",
        f"quality.reference={raw}/reference.jsonl", "quality.keep_top=0.9", f"toxicity.words={raw}/words.txt",
        "rules.min_characters=10", "unit_bytes=9000",
    )  # fmt: skip
    found = []
    for workers in (1, 2, 4):
        output = tmp_path / f"workers-{workers}"
        manifest = curate(settings(raw / "web", output, *words, f"workers={workers}"), lambda line: None)
        found.append(files_of(output))
    assert found[0] == found[1] == found[2]
    assert len(manifest["shards"]) > 4
    assert manifest["personal_data"]["replaced"]["email"] > 3
    assert manifest["decontamination"]["documents"] >= 1
    assert manifest["toxicity"]["documents"] >= 9
    assert manifest["duplicates"]["near"] > 3
    assert manifest["sources"]["web"]["documents"]["removed"]["quality.score"]["first"] > 3
