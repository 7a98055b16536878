"""Text of 181 news and blog pages beside what people marked as the article: F1, and speed. Needs the extra `curate`.

    PRETRAIN_ASSETS=... python benchmarks/extraction.py

Measure: precision and recall of 4-grams of words, each page with the same weight, as the data set defines it:
https://github.com/scrapinghub/article-extraction-benchmark
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from comparison import Result, typed
from corpora import assets

from pretrain.data.curation.web.config import Extractor, Precision
from pretrain.data.curation.web.extraction import Extraction, read_page
from pretrain.data.curation.web.responses import UnusableError
from pretrain.data.curation.web.warc import read_records

MEASURES = ("src/pretrain/data/curation/web",)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Scores:
    """Means over pages, and the speed of one core."""

    precision: float
    recall: float
    pages_per_s: float
    megabytes_per_s: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def grams(text: str, n: int = 4) -> Counter[tuple[str, ...]]:
    """Return the n-grams of a text's words; of a shorter text the one that it is."""
    words = _WORD.findall(text)
    return Counter(tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1)) if words)


def precision_and_recall(true: str, found: str) -> tuple[float | None, float | None]:
    """Return the share of 4-grams found that are true, and of true ones that are found; None: there are none."""
    expected, given = grams(true), grams(found)
    both = (expected & given).total()
    precision = both / given.total() if given else None
    return precision, both / expected.total() if expected else None


def scores(assets: Path, extractor: str, precision: str = "balanced") -> Scores:
    """Return what an extractor reaches on the pages of the assets."""
    folder = assets / "curation/html_articles"
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf8"))
    how = Extraction(Extractor(extractor), Precision(precision), 512, 200_000)
    size, seconds, found = 0, 0.0, []
    for name, record in truth.items():
        content = gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())
        size += len(content)
        started = time.process_time()
        try:
            text = read_page(content, None, how)["text"]
        except UnusableError:
            text = ""
        seconds += time.process_time() - started
        found.append(precision_and_recall(record.get("articleBody", ""), text))
    precisions = [each for each, _ in found if each is not None]
    recalls = [each for _, each in found if each is not None]
    return Scores(
        sum(precisions) / len(precisions), sum(recalls) / len(recalls), len(truth) / seconds, size / seconds / 1e6
    )


def records_per_s(data: bytes, peer: bool) -> float:
    """Return the records of a compressed crawl that are read in a second, with their contents."""
    started, count = time.process_time(), 0
    if peer:
        from fastwarc.warc import ArchiveIterator

        for record in ArchiveIterator(io.BytesIO(data), parse_http=False):
            record.reader.read()
            count += 1
    else:
        for _ in read_records(io.BytesIO(data), (0, len(data)), True, lambda headers: 1 << 24, lambda *why: None):
            count += 1
    return count / (time.process_time() - started)


def main() -> None:
    """Score each extractor, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    result = Result("extraction", typed(), {"pages": 181})
    for extractor in Extractor:
        for precision in Precision if extractor is Extractor.trafilatura else [Precision.balanced]:
            found = scores(assets(), extractor.value, precision.value)
            name = extractor.value if extractor is Extractor.resiliparse else f"{extractor.value}, {precision.value}"
            result.figures[name] = asdict(found) | {"f1": found.f1}
    crawl = (assets() / "web_samples/dolma/sample-0000.warc.gz").read_bytes() * 20
    rounds = {"ours": [records_per_s(crawl, False) for _ in range(5)]}
    rounds["fastwarc 2.0.1, no digests"] = [records_per_s(crawl, True) for _ in range(5)]
    result.add("records of a compressed crawl", "records/s", rounds, more_is_better=True)
    result.finish()


if __name__ == "__main__":
    main()
