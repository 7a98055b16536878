"""A hidden number is found by models that can look back to it, and by no others.

The models are ours with weights written by hand: attention that copies what followed the same characters before.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import random_model, shape
from folders import BYTES
from tokenizer_kinds import tokenizer_of

from pretrain.commands.tasks import evaluate
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.bound import BoundEstimate
from pretrain.evaluation.config import EvalConfig, NeedleConfig, Task
from pretrain.evaluation.needle import Needles, needle_table, score_needles
from pretrain.evaluation.scorer import Scorer
from pretrain.language_model import LanguageModel
from pretrain.models.choices import Norm, Position
from pretrain.models.config import TransformerConfig
from pretrain.models.transformer import Transformer
from pretrain.training.train import run

CODE, MATCHED = 16, 8  # channels of a token's code; characters that must be the same
TEXT = "It was a bright cold day in April, and 1234 clocks were striking thirteen. Nobody counted the number of them. "
HAYSTACK = np.array(BYTES.encode(TEXT * 20), np.int64)


@torch.no_grad()
def copying_model(window: int | None = None) -> Transformer:
    """Return a model that predicts what followed the last `MATCHED` characters where they stood before.

    In the first layer, head j copies the code of the token j + 1 positions back, by rotary positions alone. In the
    second, which does not rotate, the last characters are compared with those before each position, and the code of
    the token at the most similar position is copied. Source: Olsson et al. 2022, https://arxiv.org/abs/2209.11895.
    """
    width = CODE * (MATCHED + 2) + 1  # the token, those before it, the prediction, and a constant
    head_dim = CODE * MATCHED
    config = TransformerConfig(
        n_layers=2, d_model=width, n_heads=MATCHED, head_dim=head_dim, d_ff=1, norm=Norm.rms, position=Position.rope,
        rope_base=100.0, nope_every=2, bias=False, tie_embeddings=False, context_length=512,
        sliding_window=window, global_attention_every=0,
    )  # fmt: skip
    model = config.build(BYTES.vocab_size, causal=True)
    for name, parameter in model.named_parameters():
        parameter.fill_(float(name.endswith("norm.weight")))
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (BYTES.vocab_size, CODE), generator=generator) * 2.0 - 1.0
    slots = [slice(CODE * n, CODE * (n + 1)) for n in range(MATCHED + 2)]
    token, prediction, constant = slots[0], slots[-1], width - 1
    model.embeddings.tokens.weight[:, token] = codes
    model.embeddings.tokens.weight[:, constant] = 1.0
    first, second = (block.attention for block in model.blocks)
    of_input = (((CODE + 1) / width) ** 0.5, ((CODE * (MATCHED + 1) + 1) / width) ** 0.5)  # its root mean square
    angles = 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    for head in range(MATCHED):
        at = slice(head_dim * head, head_dim * (head + 1))
        back = angles * (head + 1)
        first.query.weight[at, constant] = torch.cat((back.cos(), -back.sin())) * 12 * of_input[0]
        first.key.weight[at, constant] = torch.cat((torch.ones(len(back)), torch.zeros(len(back)))) * 12 * of_input[0]
        first.value.weight[head_dim * head : head_dim * head + CODE, token] = torch.eye(CODE) * of_input[0]
        first.output.weight[slots[head + 1], head_dim * head : head_dim * head + CODE] = torch.eye(CODE)
        second.query.weight[slots[head], slots[head]] = torch.eye(CODE) * 6 * of_input[1]
        second.key.weight[slots[head], slots[head + 1]] = torch.eye(CODE) * 6 * of_input[1]
    second.value.weight[token, token] = torch.eye(CODE) * of_input[1]
    second.output.weight[prediction, token] = torch.eye(CODE)
    model.head.weight[:, prediction] = codes
    return model.eval()


def scored(model: Transformer, **changes) -> dict[str, float]:
    settings = NeedleConfig(lengths=[256, 512], depths=[0.0, 0.5, 1.0], choices=5, trials=8)
    return score_needles(Scorer(model, BYTES), HAYSTACK, replace(settings, **changes))


@pytest.mark.long
def test_a_model_that_copies_finds_the_number_everywhere() -> None:
    found = scored(copying_model())
    assert found["accuracy"] == 1.0
    assert found["examples"] == 2 * 3 * 8
    assert found["accuracy_low"] > 0.9
    assert found["chance"] == 0.2


@pytest.mark.long
def test_a_model_that_cannot_look_back_far_enough_fails() -> None:
    """With a window of 160 tokens in both layers the number is in reach at the end of a text alone."""
    found = scored(copying_model(window=160))
    cells = {name: share for name, share in found.items() if name.startswith("length")}
    for name, share in cells.items():
        assert share == 1.0 if "depth_1/" in name or name == "length_256/depth_0.5/accuracy" else share <= 0.5, name
    assert needle_table(found).splitlines()[0].split() == ["depth", "256", "tokens", "512", "tokens"]
    assert needle_table(found).splitlines()[3].split() == ["1", "1.00", "1.00"]


@pytest.mark.slow
def test_a_model_that_knows_nothing_is_at_chance() -> None:
    model = random_model(shape("llama", context_length=128), BYTES.vocab_size, causal=True)
    found = scored(model, lengths=[96], depths=[0.5], trials=200)
    assert found["accuracy_low"] < found["chance"] < found["accuracy_high"]


def test_progress_reaches_its_end_at_the_last_cell() -> None:
    """A bar that does not is left open, and the figures stand after it on its line."""
    told: list[tuple[int, int]] = []
    model = random_model(shape("llama", context_length=128), BYTES.vocab_size, causal=True)
    scorer = Scorer(model, BYTES, report=lambda done, total: told.append((done, total)))
    config = NeedleConfig(lengths=[96, 128], depths=[0.0, 1.0], choices=2, trials=2)
    score_needles(scorer, HAYSTACK, config)
    whole = (96 + 128) * 2 * 2 * 2
    assert told == sorted(told)
    assert told[-1] == (whole, whole)
    assert [total for _, total in told] == [whole] * len(told)


def test_rows_have_their_length_and_the_needle_its_place() -> None:
    settings = NeedleConfig(lengths=[200], trials=3, choices=4)
    for with_bos in (True, False):
        needles = Needles(BYTES, with_bos, HAYSTACK, settings)
        for depth in (0.0, 0.5, 1.0):
            for trial in needles.trials(200, depth):
                assert [len(row.tokens) for row in trial] == [200] * 4
                texts = [BYTES.decode(row.tokens[with_bos:]) for row in trial]
                numbers = [text[-5:] for text in texts]
                assert len(set(numbers)) == 4
                needle = f" The magic number is {numbers[0]}."
                assert all(text.count(needle) == 1 for text in texts)
                position = texts[0].index(needle)
                text = texts[0].replace(needle, "").removesuffix(needle[:-1])
                assert text in TEXT * 20
                assert abs(position - depth * len(text)) <= len(text) / 20
                targets = [BYTES.decode(row.tokens[row.first :]) for row in trial]
                assert all(number.endswith(target) for number, target in zip(numbers, targets, strict=True))


def test_what_cannot_be_scored_is_refused() -> None:
    llama, gpt = (random_model(shape(name, context_length=100), BYTES.vocab_size, True) for name in ("llama", "gpt"))
    with pytest.raises(ConfigError, match=r"needle.lengths has 40, and the sentence and its repetition alone take 5"):
        scored(llama, lengths=[40])
    with pytest.raises(ConfigError, match=r"no positions after its context of 100 tokens. Try 'needle.lengths=\[100"):
        scored(gpt, lengths=[128])
    with pytest.raises(DataError, match=r"has 2,\d+ tokens, too few for a length of 9,000"):
        scored(llama, lengths=[9000])
    with pytest.raises(ConfigError, match="reads at least 55 tokens, and the model's context is 32"):
        scored(random_model(shape("llama"), BYTES.vocab_size, True), lengths=[])
    masked = random_model(shape("bert"), BYTES.vocab_size, causal=False)
    for bound, task in ((None, "pseudo_perplexity"), (BoundEstimate(2, shift_targets=True), "documents")):
        scorer = Scorer(masked, BYTES, bound=bound)
        with pytest.raises(ConfigError, match=rf"task=needle needs a causal model, .* task={task}\."):
            score_needles(scorer, HAYSTACK, NeedleConfig())
    words = tokenizer_of("word level")  # which knows no number, so that all are <unk>
    haystack = np.array(words.encode("the quick fox jumps over the lazy dog. " * 60), np.int64)
    model = random_model(shape("llama", context_length=128), words.vocab_size, causal=True)
    with pytest.raises(
        ConfigError, match=r"gives different numbers the same tokens\. Take a model whose tokenizer knows"
    ):
        score_needles(Scorer(model, words), haystack, NeedleConfig(lengths=[64]))
    for settings, message in (
        ({"lengths": [64, 64]}, "must be different values"),
        ({"depths": [1.5]}, "must be one or more numbers from 0 to 1"),
        ({"depths": []}, "must be one or more numbers from 0 to 1"),
        ({"lengths": [0]}, "must be 1 or more tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            NeedleConfig(**settings)


@pytest.mark.slow
def test_a_model_goes_on_in_longer_rows_and_is_scored(tiny, tmp_path: Path, capsys) -> None:
    """`experiment=extend_context` keeps the base's shape but for what the stage changes, and task=needle reads it."""
    base = run(tiny.plan("model=llama_nano", "model.n_kv_heads=1", "trainer.max_steps=2")).folder
    learned = run(tiny.plan("model=gpt_nano", "model.position=learned", "trainer.max_steps=1")).folder
    keep = [word for word in tiny.words if word.startswith(("paths.", "trainer.", "checkpoint.", "data", "sample."))]
    tiny.words = [*keep, "experiment=extend_context", f"init_from={base}", "stages.long.model.context_length=128"]
    longer = run(tiny.plan("trainer.max_steps=2", "logging.report=false")).folder
    model = LanguageModel.load(longer).model.config
    assert (model.context_length, model.rope_base, model.d_model) == (128, 500_000.0, 16)
    words = {"lengths": [64, 128, 256], "depths": [0.0, 1.0], "trials": 2, "choices": 3}
    config = EvalConfig(checkpoint=str(longer), task=Task.needle, needle=NeedleConfig(**words))
    config.paths.cache_dir, config.output = str(tmp_path / "cache"), str(tmp_path / "scores.json")
    capsys.readouterr()
    evaluate(config, [])
    printed = capsys.readouterr().out
    assert re.search(r"^depth +64 tokens +128 tokens +256 tokens$", printed, re.M)
    assert len(re.findall(r"^[01]  +\d\.\d\d +\d\.\d\d +\d\.\d\d$", printed, re.M)) == 2
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["length_256/depth_1/accuracy"] in (0.0, 0.5, 1.0)
    assert saved["settings"]["needle"]["lengths"] == [64, 128, 256]
    with pytest.raises(ConfigError, match=r"needs positions that model\.position=learned has no weights for"):
        tiny.config(f"init_from={learned}")
