"""Speed and memory from a crawl to a corpus, beside trafilatura alone and datatrove. Needs the extra `curate`.

    PRETRAIN_ASSETS=... python benchmarks/curation_web_speed.py

ours         a compressed WARC to a corpus: extraction, language, rules of web_english, licenses of pages, personal
             data, near-duplicates, writing; with both extractors
trafilatura  its `extract` on the same pages, out of memory: what any chain with it costs at least
datatrove    its reader of WARC files, its Trafilatura and the same filters; no language, personal data or duplicates

The pages are the 181 of Scrapinghub's benchmark. Speeds are megabytes
of HTML for each second of processor time, of one process and what it starts; imports are within it.
"""

import argparse
import gzip
import io
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from corpora import assets
from curation_speed import CHILD, largest_process, measured

if TYPE_CHECKING:  # it loads torch, which would count as memory and time of a process that is measured
    from comparison import Result

MEASURES = ("src/pretrain/data/curation",)


def pages() -> list[bytes]:
    """Return the pages."""
    files = sorted((assets() / "curation/html_articles/html").iterdir())
    return [gzip.decompress(path.read_bytes()) for path in files]


def write_crawl(path: Path) -> int:
    """Write the pages as records of a compressed crawl, a gzip member each; return the bytes of HTML."""
    size = 0
    with path.open("wb") as file:
        for number, content in enumerate(pages()):
            response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(content)
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://a{number % 50}.org/{number}\r\n"
                f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
                "Content-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(response) + len(content)}\r\n\r\n"
            )
            member = io.BytesIO()
            with gzip.GzipFile(fileobj=member, mode="wb", mtime=0) as stream:
                stream.write(head.encode() + response + content + b"\r\n\r\n")
            file.write(member.getvalue())
            size += len(content)
    return size


def curated(crawl: Path, output: Path, extractor: str, workers: str) -> None:
    """Curate the crawl in this process."""
    from pretrain.config.compose import compose, register_schemas
    from pretrain.config.curate import CurateConfig
    from pretrain.data.curation.curate import curate

    register_schemas("curate", CurateConfig)
    words = [
        f"sources.crawl={{kind: warc, path: {crawl}, license: page}}", "rules=web_english", "language=english",
        "personal_data.kinds=[email,phone,ip]", f"html.extractor={extractor}", f"workers={workers}",
        f"output={output}", "unit_bytes=4000000",
    ]  # fmt: skip
    manifest = curate(compose("curate", words), report=lambda line: None)
    print(manifest["documents"], manifest["duplicates"]["near"])


def extracted() -> None:
    """Extract the pages by trafilatura alone."""
    from trafilatura import extract

    texts = [extract(page.decode(errors="replace"), include_comments=False, deduplicate=False) for page in pages()]
    print(sum(text is not None for text in texts))


def filtered(crawl: Path, output: Path) -> None:
    """Run datatrove's reader, extractor and filters."""
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    data = None
    for step in (
        WarcReader(str(crawl.parent), glob_pattern=crawl.name), Trafilatura(timeout=30), GopherRepetitionFilter(),
        GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(char_duplicates_ratio=0.1), JsonlWriter(str(output)),
    ):  # fmt: skip
        data = step(data, 0, 1)  # type: ignore[operator]
    print(sum(1 for _ in data or ()))


def child(kind: str, crawl: str, output: str, *words: str) -> None:
    """Run one of all, and print the peak of the largest process."""
    if kind == "alone":
        extracted()
    elif kind == "datatrove":
        filtered(Path(crawl), Path(output))
    else:
        curated(Path(crawl), Path(output), kind, *words)
    print(largest_process())


def compare(result: "Result", folder: Path, rounds: int) -> None:
    """Add the speed of the whole chain with each extractor beside its peers, and memory."""
    crawl = folder / "crawl.warc.gz"
    megabytes = write_crawl(crawl) / 1e6
    kinds = ["trafilatura", "resiliparse"]
    peers = ["trafilatura alone"]
    if find_spec("datatrove") is not None and find_spec("spacy") is not None and find_spec("warcio") is not None:
        peers.append("datatrove 0.10.1")
    else:
        result.missing["datatrove"] = "datatrove, spacy or warcio is not installed"
    speeds: dict[str, list[float]] = {name: [] for name in [*kinds, *peers]}
    peaks = result.figures["peak MiB of the largest process"] = {}
    for number in range(rounds):
        for kind in kinds:
            _, seconds, peak = measured(kind, str(crawl), str(folder / f"{kind}-{number}"), "1", script=__file__)
            speeds[kind].append(megabytes / seconds)
            peaks[f"one worker, {kind}"] = round(peak)
        for peer in list(peers):
            name = "alone" if peer == peers[0] else "datatrove"
            try:
                _, seconds, _ = measured(name, str(crawl), str(folder / f"peer-{name}-{number}"), script=__file__)
            except subprocess.CalledProcessError as error:
                result.missing[name] = f"its process ended with the code {error.returncode}"
                peers.remove(peer)
                continue
            speeds[peer].append(megabytes / seconds)
        print(number, {name: round(values[-1], 2) for name, values in speeds.items() if values}, flush=True)
    _, _, peak = measured("trafilatura", str(crawl), str(folder / "two"), "2", script=__file__)
    peaks["two workers, trafilatura"] = round(peak)
    for kind in kinds:
        lines = {"ours": speeds[kind], **{peer: speeds[peer] for peer in peers}}
        result.add(f"crawl to a corpus, {kind}, one core", "MB of HTML/s", lines, more_is_better=True)


def main() -> None:
    """Measure, print and save."""
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
        return
    from comparison import Result, typed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, nothing saved")
    given = parser.parse_args()
    rounds = 1 if given.quick else given.rounds
    result = Result("curation_web_speed", typed(), {"rounds": rounds, "pages": 181})
    with tempfile.TemporaryDirectory() as name:
        compare(result, Path(name), rounds)
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
