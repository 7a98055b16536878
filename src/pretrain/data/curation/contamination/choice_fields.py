"""The question, choices and right answer of an item of multiple choice, in our fields or those of a public set."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LETTERS = list("ABCDEFGHIJ")
_QUESTION = "Question: {}\nAnswer:"


@dataclass(frozen=True)
class ChoiceFields:
    """The fields of an item as they are, not checked; `gold` is None where a test split keeps its answers back."""

    question: Any
    choices: Any
    gold: Any
    names: tuple[str, str] = ("query", "gold")  # the fields that question and answer are in
    prompt: str = "{}"  # how the question is asked

    def query(self) -> Any:
        """Return the question as a model is asked it; what is no text, as it is."""
        return self.prompt.replace("{}", self.question) if isinstance(self.question, str) else self.question


def choice_fields(values: Mapping[str, Any]) -> ChoiceFields | None:
    """Return what an item asks; None if its fields are of no known set.

    Known are `query`, `choices`, `gold`, and the published fields of ARC, OpenBookQA, CommonsenseQA, MMLU, HellaSwag
    and PIQA. They are asked as lm-evaluation-harness asks the first two and the last two
    (https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks); CommonsenseQA and MMLU are asked as ARC is.
    """
    names = values.keys()
    if {"query", "choices", "gold"} <= names:
        return ChoiceFields(values["query"], values["choices"], values["gold"])
    if {"ctx", "endings", "label"} <= names:
        return _hellaswag(values)
    if {"goal", "sol1", "sol2", "label"} <= names:
        choices = [values["sol1"], values["sol2"]]
        return ChoiceFields(values["goal"], choices, _index(values["label"]), ("goal", "label"), _QUESTION)
    if {"question", "choices", "answer"} <= names and isinstance(values["choices"], list):
        gold = _index(values["answer"], values["choices"])
        return ChoiceFields(values["question"], values["choices"], gold, ("question", "answer"), _QUESTION)
    return _labeled(values) if "answerKey" in names else None


def _labeled(values: Mapping[str, Any]) -> ChoiceFields | None:
    """Return the fields of an item whose choices have labels, such as A to D; ARC's files have others than the hub."""
    asked: Any = values.get("question")
    choices, name, prompt = values.get("choices"), "question", _QUESTION
    if isinstance(asked, Mapping):  # the published files: {"stem": ..., "choices": [{"text": ..., "label": "A"}]}
        asked, choices = asked.get("stem"), asked.get("choices")
    elif "question_stem" in values:
        asked, name, prompt = values["question_stem"], "question_stem", "{}"
    if isinstance(choices, list) and all(isinstance(each, Mapping) for each in choices):
        choices = {part: [each.get(part) for each in choices] for part in ("text", "label")}
    if asked is None or not isinstance(choices, Mapping):
        return None
    labels, key = choices.get("label"), values["answerKey"]
    gold = labels.index(key) if isinstance(labels, list) and key in labels else (key or None)
    return ChoiceFields(asked, choices.get("text"), gold, (name, "answerKey"), prompt)


def _hellaswag(values: Mapping[str, Any]) -> ChoiceFields:
    """Return the fields of an item of HellaSwag without the marks that WikiHow's pages left in its texts."""
    context, choices = values["ctx"], values["endings"]
    if isinstance(values.get("ctx_a"), str) and isinstance(values.get("ctx_b"), str):
        context = f"{values['ctx_a']} {values['ctx_b'].capitalize()}"
    if isinstance(values.get("activity_label"), str) and isinstance(context, str):
        context = f"{values['activity_label']}: {context}"
    if isinstance(choices, list):
        choices = [_without_marks(each) for each in choices]
    return ChoiceFields(_without_marks(context), choices, _index(values["label"]), ("ctx", "label"))


def _without_marks(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _index(label: Any, choices: Any = ()) -> Any:
    """Return the index that a label means: digits, as HellaSwag has on the hub, a letter, or the choice itself."""
    if not isinstance(label, str):
        return label
    if isinstance(choices, list) and label in choices:
        return choices.index(label)
    if label in _LETTERS:
        return _LETTERS.index(label)
    return int(label) if label.isascii() and label.isdigit() and len(label) < 4 else (label or None)
