"""Greedy completions of a batch of prompts are those of transformers' own `generate`, token for token."""

from pathlib import Path

import pytest
import torch
from families import random_model, shape
from folders import BYTES, quiet_transformers, write_ours

from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.interop.families import GPT2_FAMILY, LLAMA_FAMILY, QWEN3_FAMILY

FAMILIES = {
    "gpt2": (GPT2_FAMILY, shape("gpt", context_length=64)),
    "llama": (LLAMA_FAMILY, shape("llama", qk_norm=False, context_length=64)),
    "a sliding window": (QWEN3_FAMILY, shape("llama", sliding_window=8, global_attention_every=0, context_length=64)),
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 40, 41, 42, 43], [30], [21, 22, 23, 24]]
NEW = 24


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["alone", "side by side"])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, name: str, prompts: list[list[int]]) -> None:
    from transformers import AutoModelForCausalLM

    family, config = FAMILIES[name]
    model = random_model(config, BYTES.vocab_size, causal=True)
    longest = max(map(len, prompts))
    rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with quiet_transformers():
        other = AutoModelForCausalLM.from_pretrained(write_ours(tmp_path / "model", family, model))
        other.generation_config.eos_token_id = None  # neither side ends early
        other.generation_config.suppress_tokens = None
        theirs = other.generate(
            rows, attention_mask=real, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )[:, longest:]  # fmt: skip
    nothing = torch.zeros(model.vocab_size, dtype=torch.bool)
    steps = generate_tokens(model, prompts, Decoding(NEW, Sampling(temperature=0), frozenset(), nothing))
    ours = [[each and each.token for each in column] for column in zip(*steps, strict=True)]
    assert ours == theirs.tolist()
    assert len({token for column in ours for token in column}) > 2  # not one token over and over
