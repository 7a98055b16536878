"""Do our rules remove the same documents, for the same reason, as the filters of datatrove 0.10.1?

    python benchmarks/curation_agreement.py

Needs `pip install datatrove==0.10.1 nltk spacy "xxhash<4"`. Both sides get our words and sentences: what is compared
are the rules. Texts are reviews, web pages and lead sections of Wikipedia of the test data (PRETRAIN_ASSETS), as they
are and changed in ways that make each rule remove some of them. The unchanged English ones are then decided once more
with the words of spaCy on the other side, which datatrove takes by default.
"""

import argparse
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from comparison import Result, typed
from corpora import assets

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.config import RulesConfig
from pretrain.data.curation.rules import KEPT, RULE_NAMES, STOP_WORDS, decide, measuring, rules_of
from pretrain.data.curation.statistics import measure
from pretrain.data.curation.words import split_sentences, split_words

MEASURES = (
    "src/pretrain/data/curation/statistics.py", "src/pretrain/data/curation/words.py",
    "src/pretrain/data/curation/rules.py", "configs/rules",
)  # fmt: skip

# the reasons of datatrove, and the rule here with the side of its threshold
REASONS = {
    "dup_para_frac": "gopher.dup_paragraphs", "dup_para_char_frac": "gopher.dup_paragraph_characters",
    "dup_line_frac": "gopher.dup_lines", "dup_line_char_frac": "gopher.dup_line_characters",
    **{f"top_{n}_gram": f"gopher.top_{n}" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher.dup_{n}" for n in range(5, 11)},
    "gopher_short_doc": "gopher.words", "gopher_long_doc": "gopher.words",
    "gopher_below_avg_threshold": "gopher.word_length", "gopher_above_avg_threshold": "gopher.word_length",
    "gopher_too_many_hashes": "gopher.hash", "gopher_too_many_ellipsis": "gopher.ellipsis",
    "gopher_too_many_bullets": "gopher.bullets", "gopher_too_many_end_ellipsis": "gopher.line_ellipsis",
    "gopher_below_alpha_threshold": "gopher.alpha", "gopher_enough_stop_words": "gopher.stop_words",
    "lorem_ipsum": "c4.lorem", "curly_bracket": "c4.curly", "too_few_sentences": "c4.sentences",
    "line_punct_ratio": "fineweb.line_end", "short_line_ratio": "fineweb.short_lines",
    "char_dup_ratio": "fineweb.dup_characters", "list_ratio": "fineweb.newlines",
}  # fmt: skip

COLUMNS = ("same reason", "another reason", "kept with another text", "raises there")
COUNT_WORDS = ("GopherQualityFilter()", "GopherRepetitionFilter()", "FineWebQualityFilter()")


def english_texts() -> Iterator[str]:
    """Yield texts of several kinds."""
    root = assets()
    with lzma.open(root / "curation/texts/movie_reviews.jsonl.xz", "rt", encoding="utf8") as file:
        yield from (json.loads(line)["text"] for number, line in enumerate(file) if number < 600)
    pages = (root / "web_samples/exllamav3/c4.utf8").read_text(encoding="utf8").splitlines()
    yield from (page.replace("\\n", "\n") for page in pages if page.strip())
    for path in sorted((root / "curation/web_jsonl").glob("*.jsonl")):
        yield from (json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines())


def texts() -> Iterator[str]:
    """Yield those and texts in French."""
    yield from english_texts()
    with lzma.open(assets() / "corpora/wikipedia_vital/fr.jsonl.xz", "rt", encoding="utf8") as file:
        yield from (json.loads(line)["text"] for number, line in enumerate(file) if number < 200)


def changed(text: str, kind: int, rng: random.Random) -> str:
    """Return a text changed in one of several ways, each of which brings it near a threshold."""
    words = text.split()
    lines = text.split("\n")
    share, sentences = rng.random(), split_sentences(text)
    some = max(1, int(share * min(len(words), 200)))
    changes: list[Callable[[], str]] = [
        lambda: "\n".join(f"- {line}" if rng.random() < 0.8 + 0.2 * share else line for line in sentences),
        lambda: "\n".join(f"{each.rstrip('.')}..." if rng.random() < share / 2 else each for each in sentences),
        lambda: " ".join(f"{word} #" if rng.random() < share / 4 else word for word in words),
        lambda: " ".join(f"{word}..." if rng.random() < share / 4 else word for word in words),
        lambda: " ".join(str(rng.randrange(1000)) if rng.random() < share / 2 else word for word in words),
        lambda: " ".join(word for word in words if word.lower() not in STOP_WORDS),
        lambda: " ".join(words[: rng.randrange(20, 80)]),
        lambda: "\n".join(lines + lines[: max(1, int(len(lines) * share))]),
        lambda: text + "\n\n" + text[: int(len(text) * share)],
        lambda: " ".join(words + words[:some]),
        lambda: " ".join(words[:100] + words[:2] * int(20 * share) + words[100:]),
        lambda: " ".join(words[:100] + words[:3] * int(20 * share) + words[100:]),
        lambda: " ".join(words[:100] + words[:4] * int(15 * share) + words[100:]),
        lambda: " ".join(words + words[5 : 5 + rng.randrange(5, 11)] * int(1 + 8 * share)),
        lambda: " ".join("".join(words[n : n + 3]) if rng.random() < share else word for n, word in enumerate(words)),
        lambda: re.sub(r"\w{3,}", lambda found: found[0][: 1 + int(3 * share)], text),
        lambda: "\n".join(words[n : n + 6] and " ".join(words[n : n + 6]) for n in range(0, len(words), 6)),
        lambda: "\n".join(each.rstrip(".!?") if rng.random() < 0.7 + share / 3 else each for each in sentences),
        lambda: "\n".join(split_sentences(text)[: rng.randrange(1, 8)]),
        lambda: text.replace(".", ". {", 1) if share < 0.5 else text.replace("\n", "\nLorem ipsum dolor sit. ", 1),
        lambda: "Lorem ipsum dolor sit amet, well.\n" + text.replace(".", ". {", 1),
        lambda: text + "\nThis site uses cookies.\nPlease enable Javascript now.\nIt is [1] so [citation needed].",
        lambda: "\n".join(["Read more about this page here now", *lines[:3]] * int(1 + 3 * share)),
        lambda: "\n".join(f"{line}\n\n\n" if rng.random() < share else line for line in re.split(r"(?<=,) ", text)),
        lambda: text.replace(". ", ".\n\n") + "\n\n" + "\n\n".join(split_sentences(text)[: int(12 * share)]),
        lambda: " ".join(words * int(1 + 400 * share)) if len(words) < 300 else text,
        lambda: " ".join(words + words[: int(len(words) * rng.uniform(0.1, 0.19))]),
        lambda: "\n".join(f"{line[: 20 + int(20 * share)]}." for line in split_sentences(text)),
        lambda: " ".join(words + words[: int(len(words) * rng.uniform(0.149, 0.165))]),
        lambda: "\n\n".join([text, *sentences[:2], text[: len(text) // 3], *sentences[2:5], text]),
        lambda: ("\n" * (1 + int(9 * share))).join(split_sentences(text)),
    ]  # fmt: skip
    return changes[kind % len(changes)]()


def ours(text: str, config: RulesConfig) -> str | None:
    """Return the rule that removes a text."""
    how = measuring(config, STOP_WORDS)
    values, _ = measure(text, how)
    columns = {name: np.array([value]) for name, value in zip(how.names(), values, strict=True)}
    columns["characters"] = np.array([float(len(text))])
    first = int(decide(rules_of(config), columns, np.ones(1, bool)).first[0])
    return None if first == KEPT else RULE_NAMES[first]


def filters(find_words: Callable[[str, str], list[str]]) -> dict[str, tuple[Any, RulesConfig]]:
    """Return each filter of datatrove, which finds words in a text of a language so, with the same rules here."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        c4_filters,
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = find_words
    c4_filters.split_into_sentences = lambda text, language: split_sentences(text)
    register_schemas("curate", CurateConfig)
    source = "sources={a: {kind: jsonl, path: x, license: unknown}}"

    def preset(name: str, part: str) -> RulesConfig:
        rules = compose("curate", [f"rules={name}", "output=x", source]).rules
        return RulesConfig(**{part: getattr(rules, part)})

    def gopher(repetition: bool) -> RulesConfig:
        config = preset("gopher", "gopher")
        for name in vars(config.gopher):
            if any(word in name for word in ("duplicate", "gram")) is not repetition:
                setattr(config.gopher, name, None)
        return config

    return {
        "GopherQualityFilter()": (GopherQualityFilter(), gopher(repetition=False)),
        "GopherRepetitionFilter()": (GopherRepetitionFilter(), gopher(repetition=True)),
        "FineWebQualityFilter()": (FineWebQualityFilter(), preset("fineweb", "fineweb")),
        "FineWebQualityFilter(char_duplicates_ratio=0.1)": (
            FineWebQualityFilter(char_duplicates_ratio=0.1), preset("web_english", "fineweb")
        ),
        "C4QualityFilter()": (C4QualityFilter(), preset("c4", "c4")),
        "C4QualityFilter(filter_no_terminal_punct=False)": (
            C4QualityFilter(filter_no_terminal_punct=False), preset("fineweb", "c4")
        ),
    }  # fmt: skip


def compared(documents: list[str], theirs: Any, config: RulesConfig, fired: Counter[str]) -> dict[str, int]:
    """Return how many texts a filter of datatrove decides as we do; count in `fired` what it removes, by rule."""
    from datatrove.data import Document

    counts = dict.fromkeys(COLUMNS, 0)
    for text in documents:
        document = Document(text=text, id="")
        try:
            result = theirs.filter(document)
        except ZeroDivisionError:
            counts["raises there"] += 1
            continue
        reason = None if result is True else REASONS.get(result[1], result[1])
        mine = ours(text, config)
        fired[reason or "kept"] += 1
        counts["same reason" if reason == mine else "another reason"] += 1
        if reason != mine and counts["another reason"] <= 3:
            print(f"{reason} there, {mine} here: {text[:200]!r}")
        elif reason is None and config.c4.lines:
            counts["kept with another text"] += measure(text, measuring(config, STOP_WORDS))[1] != document.text
    return counts


def decided_alike(documents: list[str], theirs: Any, config: RulesConfig) -> dict[str, int]:
    """Return how many texts are kept by both, removed by both, by one alone."""
    from datatrove.data import Document

    found = Counter(
        (ours(text, config) is None, theirs.filter(Document(text=text, id="")) is True) for text in documents
    )
    return {
        "kept by both": found[True, True], "removed by both": found[False, False],
        "removed by ours alone": found[False, True], "removed by theirs alone": found[True, False],
    }  # fmt: skip


def all_documents() -> list[str]:
    """Return the texts, and each of them changed in four ways."""
    originals = list(texts())
    documents = list(originals)
    for number, text in enumerate(originals):
        rng = random.Random(number)
        documents += [changed(text, number + step, rng) for step in (0, 9, 19, 27)]
    return [text for text in documents if split_words(text)]


def main() -> None:
    """Compare every filter, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every tenth text, nothing saved")
    given = parser.parse_args()
    every = 10 if given.quick else 1
    documents = all_documents()[::every]
    result, fired = Result("curation_agreement", typed(), {"texts": len(documents)}), Counter[str]()
    result.figures["filters"] = {
        name: compared(documents, theirs, config, fired)
        for name, (theirs, config) in filters(lambda text, language: split_words(text)).items()
    }
    result.figures["removed"] = {rule: fired[rule] for rule in dict.fromkeys(REASONS.values())}
    if find_spec("spacy") is None:
        result.missing["words of spaCy"] = "spacy is not installed"
    else:
        from datatrove.utils.text import split_into_words

        unchanged, with_spacy = list(english_texts())[::every], filters(split_into_words)
        result.figures["words of spaCy"] = {name: decided_alike(unchanged, *with_spacy[name]) for name in COUNT_WORDS}
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
