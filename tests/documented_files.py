"""The files that commands in README and docs name, in nano versions."""

import json
import lzma
import random
from pathlib import Path

NOUNS = ["fox", "dog", "bird", "tree", "house", "river", "story", "child", "teacher", "garden", "road", "winter"]
VERBS = ["sees", "finds", "follows", "leaves", "likes", "remembers", "draws", "hears", "meets", "paints"]
ADJECTIVES = ["quick", "brown", "lazy", "small", "old", "green", "quiet", "bright", "seven", "cold"]


def write_inputs(folder: Path) -> None:
    """Write folders of text, pairs, conversations, labels and examples of three tasks into `folder`."""
    draw = random.Random(0)
    for name, count in (("my_texts", 40), ("general_texts", 40)):
        (folder / name).mkdir()
        for number in range(count):
            text = " ".join(_sentence(draw) for _ in range(80))
            (folder / name / f"{number:02d}.txt").write_text(text)
    _write_lines(folder / "pages.jsonl", ({"text": " ".join(_sentence(draw) for _ in range(40))} for _ in range(30)))
    (folder / "my_texts" / "short.txt").write_text(" ".join(_sentence(draw) for _ in range(6)))  # curation removes it
    (folder / "my.txt").write_text("\n\n".join(_sentence(draw) for _ in range(400)))
    _write_lines(folder / "pairs.jsonl", ({"prompt": f"The {a}", "response": b} for a, b in _pairs(draw, 60)))
    _write_lines(folder / "conversations.jsonl", ({"messages": _messages(draw)} for _ in range(40)))
    for name, count in (("train.tsv", 60), ("dev.tsv", 20)):
        lines = [f"{_sentence(draw)}\t{draw.choice(['good', 'bad'])}\n" for _ in range(count)]
        (folder / name).write_text("".join(lines))
    pairs = [(_sentence(draw), number) for number in range(8)]
    minimal = [{"sentence_good": text, "sentence_bad": text[::-1], "UID": f"order_{n % 2}"} for text, n in pairs]
    with lzma.open(folder / "blimp.jsonl.xz", "wt") as file:
        file.writelines(json.dumps(example) + "\n" for example in minimal)
    choices = [{"query": f"The {a}", "choices": [b, "stone"], "gold": 0} for a, b in _pairs(draw, 8)]
    _write_lines(folder / "arc_easy.jsonl", choices)
    related = (
        {"anchor": f"The {a} {b}", "positive": f"a {b} that is {a}", "negative": f"no {b}"} for a, b in _pairs(draw, 80)
    )
    _write_lines(folder / "related.jsonl", related)
    rows = [f"{_sentence(draw)}\t{_sentence(draw)}\t{number % 6}\n" for number in range(12)]
    (folder / "sts.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    _write_retrieval(folder / "my_questions", draw)
    _write_lines(folder / "lambada.jsonl", ({"context": f"The {a}", "continuation": b} for a, b in _pairs(draw, 8)))


def _write_retrieval(folder: Path, draw: random.Random) -> None:
    """Write queries, passages and their relevance in BEIR's layout."""
    (folder / "qrels").mkdir(parents=True)
    for name, first in (("queries", "q"), ("corpus", "p")):
        texts = ({"_id": f"{first}{number}", "text": _sentence(draw)} for number in range(6))
        _write_lines(folder / f"{name}.jsonl", texts)
    rows = "".join(f"q{number}\tp{number}\t1\n" for number in range(6))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")


def _sentence(draw: random.Random) -> str:
    subject, other = draw.sample(NOUNS, 2)
    return f"The {draw.choice(ADJECTIVES)} {subject} {draw.choice(VERBS)} the {draw.choice(ADJECTIVES)} {other}."


def _pairs(draw: random.Random, count: int) -> list[tuple[str, str]]:
    return [(f"{draw.choice(ADJECTIVES)} {draw.choice(ADJECTIVES)}", draw.choice(NOUNS)) for _ in range(count)]


def _messages(draw: random.Random) -> list[dict[str, str]]:
    turns = [(role, content) for a, b in _pairs(draw, 2) for role, content in (("user", f"The {a}"), ("assistant", b))]
    return [{"role": role, "content": content} for role, content in turns]


def _write_lines(path: Path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
