"""Conversations: the loss is of the assistant's turns alone, and a model that was trained on them converses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fine_tuning import tune
from tokenizer_kinds import tokenizer_of
from torch import nn

from pretrain.data.collate import IGNORE
from pretrain.data.prepare import prepare, training_rows
from pretrain.data.tokenizers.chat_template import ChatTemplate
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.models.config import TransformerConfig
from pretrain.training.train import run

NAMES = ["Ann", "Bob", "Cid", "Dot", "Eve"]


def pair(said: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def dialogs(path: Path, count: int = 100) -> Path:
    """Write conversations of three turns of each side."""
    lines = []
    for number in range(count):
        turns = [("hi", "yes?"), (f"I am {NAMES[number % 5]} {number}", "good"), ("bye", "bye")]
        messages = [
            {"role": r, "content": c} for pair in turns for r, c in zip(("user", "assistant"), pair, strict=True)
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def base(tiny) -> Path:
    shape = ["model.d_model=32", "model.context_length=128", "model.dropout=0.0"]
    return Path(run(tiny.plan("model=gpt_nano", *shape)).folder)


@pytest.mark.slow
def test_a_model_learns_to_converse(tiny, base, tmp_path):
    words = tune(tiny, "chat", base, f"data.path={dialogs(tmp_path / 'dialogs.jsonl')}", "trainer.max_steps=150")
    report = run(tiny.plan(*words, "optimizer.learning_rate=0.01", "checkpoint.every_n_steps=150", "batch_size=8"))
    assert report.commands()[0].endswith(f"checkpoint={report.folder} chat=true")
    llm = LanguageModel.load(report.folder)
    assert llm.chat("hi", temperature=0) == "yes?"
    assert llm.chat("I am Bob 6", temperature=0) == "good"
    assert llm.chat("bye", temperature=0) == "bye"
    assert [each["role"] for each in llm.conversation] == ["user", "assistant"] * 3
    assert llm.chat([{"role": "user", "content": "hi"}], temperature=0) == "yes?"
    assert len(llm.conversation) == 2
    assert open_model(report.folder).tokenizer.chat_template == llm.tokenizer.chat_template
    (piece,) = [piece for row in rows_of_step(report.folder, 1) for piece in row.pieces][:1]
    assert piece.learned == ["yes?[[<|endoftext|>]]", "good[[<|endoftext|>]]", "bye[[<|endoftext|>]]"]
    with pytest.raises(ConfigError, match=r"has no chat template\. Fine-tune the model on conversations"):
        LanguageModel.load(base).chat("hi")
    with pytest.raises(ConfigError, match=r"chat\(\) takes messages .*: message without role and content"):
        llm.chat([{"role": "user"}])


class Scripted(nn.Module):
    """A model that writes these ids, each at its position, whatever it reads."""

    def __init__(self, ids: list[int], vocab_size: int, causal: bool) -> None:
        super().__init__()
        self.config = TransformerConfig(context_length=len(ids))
        self.vocab_size, self.causal, self.head = vocab_size, causal, nn.Identity()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.logits = 100.0 * torch.nn.functional.one_hot(torch.tensor([*ids[causal:], 0][: len(ids)]), vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[: tokens.shape[1]].expand(len(tokens), -1, -1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("written", ["a</s>b<pad>", "a<pad>b</s>"])
def test_a_turn_ends_at_the_end_of_a_turn_or_of_the_document(causal: bool, written: str) -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ pad_token }}{% endfor %}"
    template = ChatTemplate(tokenizer)
    assert template.end_id == tokenizer.pad_id != tokenizer.eos_id
    ids = [*template.prompt([("user", "hi")]), *tokenizer.encode_prompt(written)]
    llm = LanguageModel(Scripted(ids, tokenizer.vocab_size, causal), tokenizer, denoises=not causal)
    assert llm.chat("hi", temperature=0) == "a"


@pytest.mark.parametrize(
    "assistant",
    ["{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}", "{{ m.content }}{{ eos_token }}"],
)
def test_the_blocks_and_loops_of_transformers_templates_are_read(assistant: str) -> None:
    tokenizer = tokenizer_of("byte level")
    user = "{% if m.role == 'user' %}{{ m.content }}{% continue %}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + user + assistant + "{% endfor %}"
    found = ChatTemplate(tokenizer).conversation([("user", "a"), ("assistant", "fox")])
    assert [tokenizer.decode_marked(found.ids[a:b]) for a, b in found.targets] == ["fox[[</s>]]"]


def test_messages_that_are_none_are_refused_in_one_sentence() -> None:
    tokenizer = tokenizer_of("byte level")
    llm = LanguageModel(Scripted([1, 2], tokenizer.vocab_size, causal=True), tokenizer)
    with pytest.raises(ConfigError, match=r"chat\(\) takes messages .*: message without role and content"):
        llm.chat(["hello"])  # type: ignore[list-item]


PAIR = {"messages": pair("a", "b")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "template", "message"),
    [
        (PAIR, "{{ messages[0].content }}{{ eos_token }}", r"writes the messages \[0\] of 2"),
        (PAIR, "{% for m in messages %}{{ m.content }}: {% endfor %}", r"with text instead of a special token"),
        (PAIR, "{{ raise_exception('no system turn') }}", r"refuses the messages: no system turn"),
        (PAIR, "{{ ''.__class__.__mro__ }}", r"refuses the messages: access to attribute"),
        (PAIR, "{% for x in range(10**9) %}{% endfor %}", r"refuses the messages: Range too big"),
        (PAIR, "{% for %}", r"the chat template cannot be read"),
        ({"messages": "a"}, None, r"messages are no list"),
        ({"messages": [{"role": "user"}]}, None, r"message without role and content"),
        ({"messages": pair("a\ue000", "b")}, None, r"message with U\+E000"),
        ({"messages": pair("a", "b")[:1]}, None, r"no turn of the assistant"),
        ({"other": 1}, None, r"has no data\.messages_column=messages"),
    ],
)
def test_wrong_templates_and_messages(tiny, tmp_path, line, template, message):
    path, words = tmp_path / "chat.jsonl", ["data=chat", "model=gpt_nano"]
    path.write_text(json.dumps(line) + "\n")
    if template is not None:
        (tmp_path / "t.jinja").write_text(template)
        words.append(f"data.chat_template={tmp_path / 't.jinja'}")
    tiny.words = [word for word in tiny.words if not word.startswith("data")]
    config = tiny.config(*words, f"data.path={path}")
    with pytest.raises((ConfigError, DataError), match=message):
        prepare(config.data, config.tokenizer, tmp_path / "cache", report=lambda line: None)


@pytest.mark.slow
def test_other_wrong_settings(tiny, tmp_path):
    tiny.words = [word for word in tiny.words if not word.startswith("data")]
    path = dialogs(tmp_path / "chat.jsonl", 3)
    config = tiny.config("data=chat", "model=gpt_nano", f"data.path={path}", "data.chat_template=missing.jinja")
    with pytest.raises(ConfigError, match=r"data\.chat_template=missing\.jinja cannot be read.*Name a file of Jinja"):
        prepare(config.data, config.tokenizer, tmp_path / "cache")
    (tmp_path / "chat.csv").write_text("messages\na\n")
    config = tiny.config("data=chat", "model=gpt_nano", f"data.path={tmp_path / 'chat.csv'}")
    with pytest.raises(DataError, match=r"is no JSON, and conversations are lists of messages"):
        prepare(config.data, config.tokenizer, tmp_path / "cache")
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    sources = [f"data.sources.{name}={{kind: chat, path: {path}, weight: 1}}" for name in "abc"]
    words = ["data=mixture", "data.packing=whole", "model=gpt_nano", *sources, "data.sources.c.chat_template=plain"]
    config = tiny.config(*words, f"data.sources.b.chat_template={tmp_path}/own.jinja")
    message = (
        r"a\.chat_template=auto and .*\.b\.chat_template=\S+/own\.jinja are .* Try data\.sources\.b\.chat_template=auto"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(config.data, config.tokenizer, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"data\.kind=chat trains a causal model on responses, and objective=masked"):
        tiny.config("data=chat", "model=bert_nano", f"data.path={path}", "objective=masked")


@pytest.mark.slow
def test_a_conversation_that_is_cut_has_its_first_targets(tiny, tmp_path):
    """And a store is refused whose targets were changed."""
    tiny.words = [word for word in tiny.words if not word.startswith("data")]
    config = tiny.config("data=chat", "model=gpt_nano", f"data.path={dialogs(tmp_path / 'chat.jsonl', 8)}")
    prepared = prepare(config.data, config.tokenizer, tmp_path / "cache", report=lambda line: None)
    tokenizer = prepared.tokenizer
    rows = training_rows(prepared, config.data, 40, seed=0).rows(np.arange(4))
    for tokens, following in zip(rows.tokens, rows.next_tokens, strict=True):
        learned = tokenizer.decode_marked(following[following != IGNORE])
        assert learned.startswith("yes?[[<|endoftext|>]]")
        assert "user" not in learned
        assert len(tokenizer.decode_marked(tokens)) > len(learned)
    (file,) = (tmp_path / "cache").glob("stores/*/train/targets.bin")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"targets\.bin is damaged: its sha256"):
        prepare(config.data, config.tokenizer, tmp_path / "cache")


@pytest.mark.slow
def test_published_templates_give_the_ids_of_transformers(assets):
    """SmolLM2's: a system turn of its own, special tokens at the ends; the spelling of one in a message is text."""
    from transformers import AutoTokenizer

    folder = assets / "tokenizers" / "smollm2"
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    template = ChatTemplate(ours)
    messages = [*pair("What is 2+2?", "It is 4."), *pair("Und auf Deutsch?\n\nBitte!", "Es ist 4."), *pair("x", "y")]
    plain = [(each["role"], each["content"]) for each in messages]
    found = template.conversation(plain)
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert found.ids == expected[:-1]  # the new line after the last turn
    assert [ours.decode_marked(found.ids[a:b]) for a, b in found.targets] == [
        "It is 4.[[<|im_end|>]]", "Es ist 4.[[<|im_end|>]]", "y[[<|im_end|>]]"
    ]  # fmt: skip
    prompt = theirs.apply_chat_template(messages[:3], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert template.prompt(plain[:3]) == prompt
    assert template.end_id == ours.eos_id
    assert prompt == found.ids[: len(prompt)]
    tricked = template.prompt([("user", "<|im_end|>")])
    assert tricked.count(template.end_id) == template.prompt([("user", "a")]).count(template.end_id)
