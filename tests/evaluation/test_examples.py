"""Files of examples: what is read, in what sample, and errors by name and line."""

import json
import lzma
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig, ScoresConfig, Task
from pretrain.evaluation.examples import Cloze, MinimalPair, MultipleChoice, distinct_names, read_examples, spaced
from pretrain.evaluation.run import _check_draws
from pretrain.objectives.config import BidirectionalRows, HybridConfig


def write(path: Path, *records: Any) -> str:
    lines = "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf8")
    return str(path)


PAIR = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "UID": "agreement"}


def test_pairs_come_with_their_paradigm(tmp_path: Path) -> None:
    path = write(tmp_path / "blimp.jsonl.xz", PAIR, "", {**PAIR, "UID": "other"})
    found = read_examples(Task.minimal_pairs, path)
    assert found.name == "blimp"
    assert list(found.examples) == [
        MinimalPair("Cats sleep.", "Cats sleeps.", "agreement"),
        MinimalPair("Cats sleep.", "Cats sleeps.", "other"),
    ]
    plain = {name: text for name, text in PAIR.items() if name != "UID"}
    assert read_examples(Task.minimal_pairs, write(tmp_path / "b.jsonl", plain)).examples[0].paradigm == ""
    with pytest.raises(DataError, match=r"c\.jsonl:1: UID must be .* of at most 200 characters"):
        read_examples(Task.minimal_pairs, write(tmp_path / "c.jsonl", {**PAIR, "UID": "x" * 201}))


@pytest.mark.parametrize(
    ("query", "choice", "delimiter", "continuation"),
    [
        ("Q: two", "2", " ", " 2"),
        ("Q: two ", "2", " ", "2"),
        ("Q: two", " 2", " ", " 2"),
        ("Q: two", "2", "\\nAnswer: ", "\nAnswer: 2"),
        ("Q: two", "2", "\\t", "\t2"),
        ("Q: two", "2", "\\\\n", "\\n2"),
        ("Q: two", "é", "", "é"),
    ],
)
def test_a_delimiter_stands_between_query_and_choice(
    tmp_path: Path, query: str, choice: str, delimiter: str, continuation: str
) -> None:
    path = write(tmp_path / "arc.jsonl", {"query": query, "choices": [choice, "other"], "gold": 1})
    (found,) = read_examples(Task.multiple_choice, path, delimiter=delimiter).examples
    assert isinstance(found, MultipleChoice)
    assert (found.query, found.continuations[0], found.gold) == (query, continuation, 1)
    assert found.choice_bytes == (len(choice.encode()), 5)
    (cloze,) = read_examples(
        Task.cloze, write(tmp_path / "lambada.json", {"context": query, "continuation": choice}), delimiter=delimiter
    ).examples
    assert cloze == Cloze(query, continuation)


ARC = {"text": ["cat", "dog"], "label": ["A", "B"]}
PUBLISHED: list[tuple[dict[str, Any], str, tuple[str, ...], int]] = [  # fields as published, query, continuations, gold
    ({"id": "1", "question": "Who barks?", "choices": ARC, "answerKey": "B"},
     "Question: Who barks?\nAnswer:", (" cat", " dog"), 1),
    ({"question": {"stem": "Who?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]},
      "answerKey": "2"}, "Question: Who?\nAnswer:", (" x", " y"), 1),
    ({"question_stem": "Dogs", "choices": ARC, "answerKey": "A"}, "Dogs", (" cat", " dog"), 0),
    ({"question": "1 + 1?", "subject": "sums", "choices": ["2", "3"], "answer": 0},
     "Question: 1 + 1?\nAnswer:", (" 2", " 3"), 0),
    ({"activity_label": "Roof", "ctx_a": "A man sits [title] here.", "ctx_b": "he", "ctx": "-", "label": "1",
      "endings": ["is [x] up.", "jumps"]}, "Roof: A man sits. here. He", (" is up.", " jumps"), 1),
    ({"question": "Who?", "choices": ["x", "y"], "answer": "B"}, "Question: Who?\nAnswer:", (" x", " y"), 1),
    ({"goal": "open", "sol1": "push", "sol2": "pull", "label": 1}, "Question: open\nAnswer:", (" push", " pull"), 1),
]  # fmt: skip


@pytest.mark.parametrize(("record", "query", "continuations", "gold"), PUBLISHED)
def test_published_files_are_read_as_they_are(
    tmp_path: Path, record: dict[str, Any], query: str, continuations: tuple[str, ...], gold: int
) -> None:
    (found,) = read_examples(Task.multiple_choice, write(tmp_path / "set.jsonl", record)).examples
    assert isinstance(found, MultipleChoice)
    assert (found.query, found.continuations, found.gold) == (query, continuations, gold)


def test_the_last_word_of_lambada_as_published_is_the_continuation(tmp_path: Path) -> None:
    (found,) = read_examples(Task.cloze, write(tmp_path / "lambada.jsonl", {"text": "He saw the sea "})).examples
    assert found == Cloze("He saw the", " sea")


def test_a_part_is_spaced_evenly_and_always_the_same(tmp_path: Path) -> None:
    records = [{**PAIR, "UID": str(number)} for number in range(10)]
    path = write(tmp_path / "pairs.jsonl", *records)
    found = [read_examples(Task.minimal_pairs, path, max_examples=count).examples for count in (4, 4, 10, 99, 0)]
    assert [pair.paradigm for pair in found[0]] == ["0", "2", "5", "7"]
    assert found[0] == found[1]
    assert [len(each) for each in found] == [4, 4, 10, 10, 10]
    assert spaced("abc", 1) == ["a"]


REFUSED: list[tuple[Task, Any, str]] = [
    (Task.minimal_pairs, "[1]", r"bad\.jsonl:2 is not a JSON object\. Write one example a line"),
    (Task.minimal_pairs, "{", r"bad\.jsonl:2 is not a JSON object"),
    (
        Task.minimal_pairs,
        {"sentence_good": "a"},
        r"bad\.jsonl:2: sentence_bad must be a text\. The keys of the line are: sentence_",
    ),
    (
        Task.multiple_choice,
        {"query": "a", "choices": ["b"], "gold": 0},
        r"choices must be a list of at least two texts",
    ),
    (
        Task.multiple_choice,
        {"query": "a", "choices": ["b", ""], "gold": 0},
        r"choices must be a list of at least two texts",
    ),
    (
        Task.multiple_choice,
        {"query": "a", "choices": ["b", "c"], "gold": 2},
        r"gold must be the index or label of one of the 2 choices",
    ),
    (
        Task.multiple_choice,
        {"question": "a", "choices": ["b", "c"]},
        r"query, choices and gold must be there, or the pub",
    ),
    (Task.multiple_choice, {"query": 3, "choices": ["b", "c"], "gold": 0}, r"query must be a text"),
    (
        Task.multiple_choice,
        {"ctx": "a", "endings": ["b", "c"], "label": ""},
        r"label must be the index or label of one",
    ),
    (Task.multiple_choice, {"query": "a", "choices": ["b", " "], "gold": 0}, r"at least two texts, none of them empty"),
    (
        Task.minimal_pairs,
        {**PAIR, "sentence_bad": " "},
        r"bad\.jsonl:2: sentence_bad must be a text that is not empty",
    ),
    (
        Task.cloze,
        {"context": "a", "continuation": ""},
        r"bad\.jsonl:2: continuation must be a text that is not empty",
    ),
    (Task.cloze, {"context": "a\ud800", "continuation": "b"}, r"bad\.jsonl:2: context must be a text\."),
    (Task.multiple_choice, {"query": "a", "choices": ["b", "\udc00"], "gold": 0}, r"none of them empty"),
    (Task.cloze, {"context": "a", "continuation": None}, r"continuation must be a text"),
    (Task.cloze, {}, r"context must be a text\. The keys of the line are: none"),
]
GOOD: dict[Task, Any] = {
    Task.minimal_pairs: PAIR,
    Task.multiple_choice: {"query": "a", "choices": ["b", "c"], "gold": 0},
    Task.cloze: {"context": "a", "continuation": "b"},
}


@pytest.mark.parametrize(("task", "record", "message"), REFUSED)
def test_what_is_no_example_is_named_by_its_line(tmp_path: Path, task: Task, record: Any, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD[task], record)
    with pytest.raises(DataError, match=message):
        read_examples(task, path)


def test_files_that_give_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scores\.cloze=.*empty\.jsonl contains no example"):
        read_examples(Task.cloze, write(tmp_path / "empty.jsonl"), key="scores.cloze")
    with pytest.raises(DataError, match=r"path=nowhere does not exist"):
        read_examples(Task.cloze, "nowhere")
    sets = [read_examples(Task.minimal_pairs, write(tmp_path / name, PAIR)) for name in ("a.jsonl", "a.jsonl.xz")]
    with pytest.raises(ConfigError, match="scores names two files called a, whose metrics would collide"):
        distinct_names(sets, "scores")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 0}, "batch_tokens=0 is below 1. Try batch_tokens=32"),
        ({"new_tokens": -1}, "new_tokens=-1 is below 1"),
        ({"max_examples": -1}, "max_examples=-1 is negative. Try max_examples=500, or 0 for all"),
        ({"task": Task.cloze}, "task=cloze needs a file of examples. Give it: path=examples.jsonl"),
        ({"task": Task.memorization, "path": "x"}, "so path=x has no use. Leave it out"),
        ({"max_examples": 9}, r"max_examples=9 has no use in task=documents, .* Try max_rows=500\."),
        ({"task": Task.glue, "path": "x", "max_examples": 9}, r"task=glue, .* Try glue\.max_train_examples=500"),
        ({"task": Task.needle, "max_examples": 9}, r"task=needle, .* Try needle\.trials=5"),
        ({"task": Task.retrieval, "path": "x", "max_examples": 9}, r"task=retrieval, .*queries\. Leave it out"),
        ({"task": Task.cloze, "path": "x", "max_rows": 9}, r"max_rows=9 is for task=documents, .*Try max_examples=9"),
        ({"draws": 64}, r"draws=64 is for task=minimal_pairs or .*, not task=documents\. Try draws_per_row=64"),
        ({"task": Task.cloze, "path": "x", "draws_per_row": 9}, r"draws_per_row=9 is for task=documents, .*Leave it"),
        (
            {"task": Task.bias, "path": "x", "delimiter": "-"},
            r"delimiter='-' is for task=multiple_choice or cloze",
        ),
        ({"new_tokens": 9}, r"new_tokens=9 is for task=memorization, not task=documents\. Leave it out"),
        ({"task": Task.needle, "max_rows": 9}, r"max_rows=9 is for task=documents, not task=needle\. Leave it out"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_examples": -1}, "scores.max_examples=-1 is negative. Try scores.max_examples=500"),
        ({"batch_tokens": 0}, "scores.batch_tokens=0 is below 1. Try scores.batch_tokens=4096"),
        ({"every_n_steps": 5}, r"scores.every_n_steps=5 has nothing to score. Name a file: 'scores.minimal_pairs=\["),
    ],
)
def test_scores_that_cannot_work_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoresConfig(**settings)


@pytest.mark.parametrize(("rows", "is_bound"), [("diffusion", True), ("masked", False)])
def test_the_masks_of_a_row_are_for_objectives_with_a_bound(rows: str, is_bound: bool) -> None:
    objective = HybridConfig(bidirectional=BidirectionalRows(rows))
    folder: Any = SimpleNamespace(objective=objective)
    if is_bound:
        _check_draws(EvalConfig(draws_per_row=8), folder, "draws_per_row")
        return
    with pytest.raises(ConfigError, match="draws_per_row=8 means nothing for a model that is scored without a bound"):
        _check_draws(EvalConfig(draws_per_row=8), folder, "draws_per_row")
