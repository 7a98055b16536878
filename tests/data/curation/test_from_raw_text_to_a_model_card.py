"""Real text of four kinds: one command to a corpus, one to a model, and the card of the model says where it is from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.data.curation.manifest import read_manifest

ROOT = Path(__file__).parents[3]
ASSETS = Path(os.environ.get("PRETRAIN_ASSETS", ""))


def run(script: str, *words: str) -> str:
    """Return what a command prints."""
    command = [sys.executable, str(ROOT / "src" / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (ASSETS / "corpora").is_dir(), reason="PRETRAIN_ASSETS names no folder with corpora")
def test_from_raw_text_to_a_model_card(tmp_path: Path) -> None:
    corpora, output, logs = ASSETS / "corpora", tmp_path / "corpus", tmp_path / "run"
    web = ASSETS / "web_samples" / "exllamav3" / "c4.utf8"
    printed = run(
        "curate.py",
        f"sources.wikipedia={{kind: jsonl, path: {corpora}/wikipedia_vital/en.jsonl.xz, license: CC-BY-SA-4.0, "
        "rules: prose}",
        f"sources.novels={{kind: jsonl, path: {corpora}/english_novels/valid.jsonl.xz, license: CC0-1.0, rules: none}}",
        f"sources.reviews={{kind: jsonl, path: {ASSETS}/curation/texts/movie_reviews.jsonl.xz, license: unknown}}",
        f"sources.web={{kind: text_files, path: {web}, separator: '\\n', license: unknown}}",
        "rules=web_english", f"output={output}",
    )  # fmt: skip
    assert f"report      {output / 'report.html'}" in printed
    manifest = read_manifest(output)
    counts = {name: source["documents"] for name, source in manifest["sources"].items()}
    assert {name: each["read"] for name, each in counts.items()} == {
        "novels": 4, "reviews": 1000, "web": 584, "wikipedia": 10_033,
    }  # fmt: skip
    assert (counts["web"]["exact"], counts["reviews"]["near"]) == (3, 2)
    run(
        "train.py", "data=curated", f"data.path={output}", "trainer.max_steps=5", f"paths.run_dir={logs}",
        f"paths.cache_dir={tmp_path / 'cache'}", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    run("export.py", f"checkpoint={logs}", f"output={tmp_path / 'exported'}")
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf8")
    assert manifest["fingerprint"] in card
    rows = {line.split("|")[1].strip(): line for line in card.splitlines() if line.startswith("|")}
    assert rows["wikipedia"].startswith(f"| wikipedia | CC-BY-SA-4.0 | 10,033 | {counts['wikipedia']['kept']:,} | ")
    assert rows["reviews"].endswith("near-duplicates 2 |")
    for name, source in counts.items():
        for rule, count in source["removed"].items():
            assert not count["first"] or f"{rule} {count['first']:,}" in rows[name]
    for license_name, count in manifest["licenses"].items():
        assert rows[license_name] == f"| {license_name} | {count['documents']:,} | {count['characters']:,} |"
