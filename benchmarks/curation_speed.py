"""Speed and memory of a curation, beside datatrove 0.10.1 on the same documents: `python benchmarks/curation_speed.py`.

one core     jsonl to a corpus with the rules of web_english and near-duplicates, megabytes of text a second, in turns
             with datatrove's chain of the same filters, its MinHash (14 bands of 8 there, 20 of 8 here) and its writer
cores        two workers over one
threshold    another threshold on a corpus that is measured already
memory       with --memory this alone: the peak of the largest process of two, at numbers of documents; a million
             take 20 minutes of two idle cores

datatrove finds words with spaCy, as it does by default. Needs `pip install datatrove==0.10.1 loguru humanize nltk
tldextract spacy "xxhash<4"`. Documents are sentences of the novels of PRETRAIN_ASSETS in random order, 1.75 kB on
average, and every tenth is a copy of an earlier one with three words changed. Speeds of one core and of the threshold
are per second of processor time, so that other programs of the machine count little; imports, hashing and writing are
within it.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from corpora import texts
from planted_duplicates import changed

if TYPE_CHECKING:  # it loads torch, which would count as memory and time of a process that is measured
    from comparison import Result

MEASURES = ("src/pretrain/data/curation",)

SENTENCES = 14  # of a document: 1.75 kB
CHILD = "--child"


def sentences(count: int = 200_000) -> list[str]:
    """Return sentences of the novels."""
    found: list[str] = []
    for text in texts("english_novels/train"):
        found += [each for each in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 40 < len(each) < 400]
        if len(found) >= count:
            break
    return found[:count]


def write_documents(path: Path, count: int) -> int:
    """Write so many documents as JSON lines; return the bytes of their text."""
    draw, pool = random.Random(1), sentences()
    earlier: list[str] = []
    size = 0
    with path.open("w", encoding="utf8") as file:
        for number in range(count):
            if number % 10 == 9:
                text = changed(draw.choice(earlier), 3, draw)
            else:
                lines = [" ".join(draw.choices(pool, k=SENTENCES // 2)) for _ in range(2)]
                text = "\n".join(lines)
            if len(earlier) < 1000:
                earlier.append(text)
            else:
                earlier[draw.randrange(1000)] = text
            size += len(text.encode())
            file.write(json.dumps({"text": text, "id": str(number)}) + "\n")
    return size


def curated(documents: Path, output: Path, workers: int, *words: str) -> None:
    """Curate the documents in this process."""
    from pretrain.config.compose import compose, register_schemas
    from pretrain.config.curate import CurateConfig
    from pretrain.data.curation.curate import curate

    register_schemas("curate", CurateConfig)
    source = f"sources.web={{kind: jsonl, path: {documents}, license: unknown, language: en}}"
    given = [source, "rules=web_english", f"workers={workers}", f"output={output}", *words]
    manifest = curate(compose("curate", given), report=lambda line: None)
    print(manifest["documents"], manifest["duplicates"]["near"])


def filtered(documents: Path, output: Path) -> None:
    """Run datatrove's chain over the documents in this process."""
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    def run(steps: list, rank: int = 0, world: int = 1) -> None:  # type: ignore[type-arg]
        data = None
        for step in steps:
            data = step(data, rank, world)
        for _ in data or ():
            pass

    config = minhash.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    kept = str(output / "kept")
    run(
        [
            JsonlReader(str(documents.parent), glob_pattern=documents.name), GopherRepetitionFilter(),
            GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter(char_duplicates_ratio=0.1), JsonlWriter(kept),
        ]
    )  # fmt: skip
    folders = [str(output / name) for name in ("signatures", "buckets", "clusters")]
    run([JsonlReader(kept), minhash.MinhashDedupSignature(folders[0], config, language="en")])
    for bucket in range(config.num_buckets):
        run([minhash.MinhashDedupBuckets(folders[0], folders[1], config=config)], bucket, config.num_buckets)
    run([minhash.MinhashDedupCluster(folders[1], folders[2], config)])
    run([JsonlReader(kept), minhash.MinhashDedupFilter(folders[2]), JsonlWriter(str(output / "last"))])


def measured(*words: str, script: str = __file__) -> tuple[float, float, float]:
    """Return seconds, processor seconds and peak MiB of the largest process of a run of this script or another."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, script, CHILD, *words], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(done.stdout.strip().replace("\n", ", "), flush=True)
    return seconds, processor, float(done.stdout.split()[-1])


def child(kind: str, documents: str, output: str, *words: str) -> None:
    """Run one of both, and print the peak of the largest process."""
    if kind == "ours":
        curated(Path(documents), Path(output), int(words[0]), *words[1:])
    else:
        filtered(Path(documents), Path(output))
        print("done")
    print(largest_process())


def largest_process() -> float:
    """Return the peak memory in MiB of this process and of those that it has started and that have ended."""
    # What getrusage says of this process holds the memory of the one that started it.
    own = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return max(int(own[1]) if own else 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def compare(result: "Result", folder: Path, count: int, rounds: int) -> None:
    """Add speeds of one core, of two workers, of a new threshold, and datatrove's."""
    documents = folder / "documents.jsonl"
    megabytes = write_documents(documents, count) / 1e6
    fewer = folder / "fewer.jsonl"
    fewer_megabytes = write_documents(fewer, min(count, 1000)) / 1e6
    theirs = find_spec("datatrove") is not None and find_spec("spacy") is not None
    if not theirs:
        result.missing["datatrove"] = "datatrove or spacy is not installed"
    speeds: dict[str, list[float]] = {"ours": [], **({"datatrove 0.10.1": []} if theirs else {})}
    more: dict[str, list[float]] = {"two workers": [], "new threshold": []}
    for number in range(rounds):
        output = folder / f"corpus-{number}"
        _, seconds, _ = measured("ours", str(documents), str(output), "1")
        speeds["ours"].append(megabytes / seconds)
        if theirs:
            _, taken, _ = measured("theirs", str(fewer), str(folder / f"theirs-{number}"))
            speeds["datatrove 0.10.1"].append(fewer_megabytes / taken)
        _, again, _ = measured("ours", str(documents), str(output), "1", "rules.gopher.min_words=60")
        more["new threshold"].append(megabytes / again)
        two, _, _ = measured("ours", str(documents), str(folder / f"two-{number}"), "2", "unit_bytes=4000000")
        one, _, _ = measured("ours", str(documents), str(folder / f"one-{number}"), "1", "unit_bytes=4000000")
        more["two workers"].append(one / two)
        print(number, {name: values[-1] for name, values in (speeds | more).items()}, flush=True)
    result.add(
        "raw text to a corpus, one core", "MB/s", speeds, more_is_better=True, targets={"datatrove 0.10.1": 10.0}
    )
    result.figures["two workers over one"] = more["two workers"]
    result.figures["new threshold, MB/s"] = more["new threshold"]


def memory(result: "Result", folder: Path, counts: list[int]) -> None:
    """Add the peak memory of the largest process at numbers of documents."""
    peaks = result.figures["peak MiB of the largest process, by documents"] = {}
    for count in counts:
        documents = folder / "many.jsonl"
        write_documents(documents, count)
        seconds, _, peak = measured("ours", str(documents), str(folder / f"many-{count}"), "2")
        peaks[f"{count:,}"] = round(peak)
        print(count, "documents,", round(peak), "MiB,", round(seconds), "s", flush=True)


def main() -> None:
    """Measure, print and save."""
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
        return
    from comparison import Result, typed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", help="numbers of documents")
    parser.add_argument("--quick", action="store_true", help="2,000 documents, one round, nothing saved")
    given = parser.parse_args()
    if given.quick:
        given.documents, given.rounds = 2000, 1
    with tempfile.TemporaryDirectory() as name:
        if given.memory:
            result = Result("curation_speed_memory", typed(), {"documents": given.memory})
            memory(result, Path(name), given.memory)
        else:
            result = Result("curation_speed", typed(), {"documents": given.documents, "rounds": given.rounds})
            compare(result, Path(name), given.documents, given.rounds)
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
