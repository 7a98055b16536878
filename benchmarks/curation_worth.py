"""Measure what curation is worth: a small model on a dirtied corpus as it is, and on the same corpus curated.

    PRETRAIN_ASSETS=<folder> python benchmarks/curation_worth.py [--quick]

Clean text is pieces of English novels. Exact copies, changed copies, boilerplate and noise are planted beside it, and
each is counted. Both arms read the corpus through `data=curated`: once written with no rule and no duplicates removed,
once with `rules=web_english`. Both train the same steps of the same rows, so the same tokens, and are scored on clean
text that none of them has read. What is done in the folder is not done again.
"""

import argparse
import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq
from corpora import novels
from machine import machine

MEASURES = ("src/pretrain/data/curation", "src/pretrain/data/sources/curated.py", "configs/rules/web_english.yaml")

ROOT = Path(__file__).parents[1]
HELD_OUT = 150  # documents
ARMS = {"as it is": ["rules=none", "duplicates=off"], "curated": ["rules=web_english"]}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % of Student's t, by the number of seeds
MENU = (
    "Home", "About us", "Contact", "Login", "Register", "Cart (0)", "Search", "Newsletter", "Sitemap", "Imprint",
    "Privacy", "Share", "Tweet", "Print", "Next", "Previous", "Read more ...", "Back to top", "Help", "Careers",
)  # fmt: skip
NOTICES = (
    "This site uses cookies to improve your experience.", "By continuing you accept our privacy policy.",
    "All rights reserved.", "Please enable JavaScript to view this page.", "Subscribe to our newsletter.",
    "Sign in to leave a comment.", "You may also like these articles.", "Terms of use apply to all content.",
)  # fmt: skip


def boilerplate(draw: random.Random) -> str:
    """Return the menus and notices around a page, without the page."""
    lines = draw.choices(MENU, k=draw.randint(30, 120)) + draw.choices(NOTICES, k=draw.randint(2, 8))
    draw.shuffle(lines)
    return "\n".join([f"Site {draw.randrange(10**6)}", *lines])


def noise(draw: random.Random) -> str:
    """Return characters without meaning, or one advertisement again and again."""
    if draw.random() < 0.5:
        signs = "abcdefghijklmnopqrstuvwxyz0123456789#%&/=+"
        return " ".join("".join(draw.choices(signs, k=draw.randint(2, 14))) for _ in range(draw.randint(80, 400)))
    words = " ".join("".join(draw.choices("aeioustrnl", k=5)) for _ in range(4))
    return " ".join([f"buy {words} cheap at {draw.randrange(99)} dollars"] * draw.randint(20, 80))


def nearly(text: str, draw: random.Random) -> str:
    """Return a text with one word of a hundred replaced."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), max(1, len(words) // 100)):
        words[place] = f"{words[place][:2]}{draw.choice(('ed', 'ing', 's', 'er'))}"
    return " ".join(words)


def plant(folder: Path, clean: int) -> dict[str, int]:
    """Write the dirtied corpus, a file for each kind, and the held-out text; return how many documents of each."""
    draw = random.Random(0)
    pieces = [text for text in novels(2.6 * clean / 1000 + 1.0) if 600 <= len(text) <= 8_000]
    draw.shuffle(pieces)
    held_out, good = pieces[:HELD_OUT], pieces[HELD_OUT : HELD_OUT + clean]
    tenth = clean // 10
    kinds = {
        "clean": good,
        "exact": [text for text in good[: tenth // 2] for _ in range(10)],
        "near": [nearly(text, draw) for text in good[tenth : tenth + tenth // 2] for _ in range(8)],
        "boilerplate": [boilerplate(draw) for _ in range(8 * tenth)],
        "noise": [noise(draw) for _ in range(6 * tenth)],
    }
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    write(folder / "held_out.jsonl", held_out)
    for kind, documents in kinds.items():
        write(raw / f"{kind}.jsonl", documents)
    return {kind: len(documents) for kind, documents in kinds.items()}


def write(path: Path, documents: list[str]) -> None:
    """Write documents, unless the file is there: a new one would be curated and tokenized again."""
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf8")


def run(script: str, words: list[str]) -> None:
    """Run a command of this project; its output goes to standard error."""
    subprocess.run([sys.executable, str(ROOT / "src" / script), *words], check=True, stdout=sys.stderr)


def curate(folder: Path, arm: str) -> tuple[Path, dict[str, int]]:
    """Curate the corpus for an arm; return it, and how many documents of each kind it keeps."""
    output = folder / arm.replace(" ", "_")
    source = f"sources.dirty={{kind: jsonl, path: {folder / 'raw'}, license: unknown}}"
    run("curate.py", [source, *ARMS[arm], f"output={output}"])
    kept: Counter[str] = Counter()
    for path in sorted((output / "data").iterdir()):
        for origin in pq.read_table(path, columns=["origin"])["origin"].to_pylist():
            kept[origin.rpartition("/")[2].partition(".")[0]] += 1
    return output, dict(kept)


def bits_per_byte(folder: Path, corpus: Path, steps: int, seed: int) -> dict[str, float]:
    """Train and score one model, or read its scores if that was done."""
    run_dir = folder / "runs" / f"{corpus.name}-{steps}-{seed}"
    scores = run_dir / "scores.json"
    if not scores.exists():
        run("train.py", [
            "data=curated", f"data.path={corpus}", "model=gpt_nano", f"seed={seed}", f"trainer.max_steps={steps}",
            "trainer.accelerator=cpu", "logger=csv", "trainer.enable_progress_bar=false", "checkpoint.keep=1",
            f"paths.run_dir={run_dir}", f"paths.cache_dir={folder / 'cache'}", "resume=auto",
        ])  # fmt: skip
        run("eval.py", [f"checkpoint={run_dir}", f"path={folder / 'held_out.jsonl'}", f"output={scores}"])
    report = json.loads((run_dir / "report.json").read_text(encoding="utf8"))
    found = json.loads(scores.read_text(encoding="utf8"))
    return {"bits_per_byte": found["bits_per_byte"], "tokens": report["tokens_seen"]}


def difference(raw: list[float], curated: list[float]) -> dict[str, float]:
    """Return mean and 95 % interval of the paired differences, curated minus as it is."""
    each = [after - before for before, after in zip(raw, curated, strict=True)]
    if len(each) < 2:
        return {"mean": each[0]}
    half = T_95[len(each)] * stdev(each) / math.sqrt(len(each))
    return {"mean": fmean(each), "low": fmean(each) - half, "high": fmean(each) + half}


def measure(folder: Path, clean: int, steps: int, seeds: int, report: Callable[[str], object]) -> dict[str, Any]:
    """Return what was planted, kept, and how well both arms do."""
    planted = plant(folder, clean)
    arms: dict[str, Any] = {}
    corpora = {}
    for arm in ARMS:
        corpora[arm], kept = curate(folder, arm)
        arms[arm] = {"kept": kept, "bits_per_byte": [], "tokens": []}
    for seed in range(seeds):  # one seed of both, then the next: an interrupted run has whole pairs
        for arm, corpus in corpora.items():
            found = bits_per_byte(folder, corpus, steps, seed)
            arms[arm]["bits_per_byte"].append(found["bits_per_byte"])
            arms[arm]["tokens"].append(found["tokens"])
            report(f"seed {seed}, {arm}: {found['bits_per_byte']:.4f} bits per byte of clean held-out text")
    raw, curated = (arms[arm]["bits_per_byte"] for arm in ARMS)
    return {
        "machine": machine(), "settings": {"model": "gpt_nano", "steps": steps, "seeds": seeds, "held_out": HELD_OUT},
        "planted": planted, "arms": arms, "difference": difference(raw, curated),
    }  # fmt: skip


def show(figures: dict[str, Any]) -> None:
    """Print what was planted and kept, and the scores."""
    print(f"{'documents':<14}{'planted':>10}" + "".join(f"{arm:>12}" for arm in figures["arms"]))
    for kind, count in figures["planted"].items():
        kept = "".join(f"{arm['kept'].get(kind, 0):>12,}" for arm in figures["arms"].values())
        print(f"{kind:<14}{count:>10,}{kept}")
    for name, arm in figures["arms"].items():
        values = ", ".join(f"{value:.4f}" for value in arm["bits_per_byte"])
        print(f"{name}: {fmean(arm['bits_per_byte']):.4f} bits per byte ({values}) after {arm['tokens'][0]:,} tokens")
    found = figures["difference"]
    interval = f", 95 % interval {found['low']:+.4f} to {found['high']:+.4f}" if "low" in found else ""
    print(f"curated minus as it is: {found['mean']:+.4f}{interval}")


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=1000, help="clean documents, at most; more junk is planted")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--quick", action="store_true", help="100 documents, 5 steps, 1 seed: does it run?")
    parser.add_argument("--folder", type=Path, default=Path("logs/curation_worth"), help="for corpora and runs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/curation_worth.json"))
    given = parser.parse_args()
    size = (100, 5, 1) if given.quick else (given.clean, given.steps, given.seeds)
    folder = given.folder / f"{size[0]}"
    figures = measure(folder, *size, report=lambda line: print(line, file=sys.stderr, flush=True))
    show(figures)
    if not given.quick:
        given.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
