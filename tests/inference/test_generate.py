"""Generation: with or without a KV cache, alone or in a batch, the tokens are the same."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import CAUSAL, random_model, shape
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.kv_cache import StaticKVCache
from pretrain.inference.sampling import Sampling
from pretrain.models.transformer import Transformer

VOCAB = 50
END = 1
GREEDY = Sampling(temperature=0)
ENDS = frozenset({END})
NOTHING = torch.zeros(VOCAB, dtype=torch.bool)
NO_END = torch.arange(VOCAB) == END
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [30], [21, 22, 23, 24]]


def run(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = GREEDY,
    new: int = 15,
    suppress_tokens: Tensor = NO_END,
    use_cache: bool = True,
) -> list[list[int | None]]:
    """Return the new tokens of each prompt."""
    steps = generate_tokens(model, prompts, Decoding(new, sampling, ENDS, suppress_tokens, use_cache))
    return [[new and new.token for new in column] for column in zip(*steps, strict=True)]


@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_each_token_is_the_argmax_after_all_before_it(family: str) -> None:
    """Neither cache nor masks of generation are used on the other side of this comparison."""
    model = random_model(shape(family), VOCAB, causal=True)
    tokens = list(PROMPTS[0])
    for token in run(model, [PROMPTS[0]])[0]:
        scores = model.head(model(torch.tensor([tokens]))[0, -1]).masked_fill(NO_END, -torch.inf)
        assert token == int(scores.argmax())
        tokens.append(int(scores.argmax()))
    assert len(set(tokens)) > 5  # not one token over and over


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=3), Sampling(0.7, top_k=9, top_p=0.8, seed=4)])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_the_cache_changes_no_token(family: str, sampling: Sampling, prompts: list[list[int]]) -> None:
    model = random_model(shape(family), VOCAB, causal=True)
    assert run(model, prompts, sampling) == run(model, prompts, sampling, use_cache=False)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_of_prompts_gives_the_tokens_of_each_alone(family: str, use_cache: bool) -> None:
    model = random_model(shape(family), VOCAB, causal=True)
    together = run(model, PROMPTS, use_cache=use_cache)
    assert together == [run(model, [prompt], use_cache=use_cache)[0] for prompt in PROMPTS]
    assert len({tuple(column) for column in together}) == len(PROMPTS)


@pytest.mark.parametrize("family", CAUSAL)
def test_the_cache_reads_each_token_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(shape(family), VOCAB, causal=True)
    lengths = []
    real = model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, *a, **k: lengths.append(tokens.shape[1]) or real(tokens, *a, **k)
    )
    run(model, PROMPTS, new=4)
    assert lengths == [7, 1, 1, 1]
    lengths.clear()
    run(model, PROMPTS, new=4, use_cache=False)
    assert lengths == [7, 8, 9, 10]


def test_the_cache_is_allocated_once_and_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block for prompts and completions of all rows; a step writes into it and reads views of it."""
    made: list[StaticKVCache] = []
    real_init, real_extend = StaticKVCache.__init__, StaticKVCache.extend

    def init(self: StaticKVCache, *arguments: Any) -> None:
        real_init(self, *arguments)
        made.append(self)

    def extend(self: StaticKVCache, *arguments: Any) -> tuple[Tensor, Tensor]:
        found = real_extend(self, *arguments)
        assert {each.untyped_storage().data_ptr() for each in found} == {self.store.untyped_storage().data_ptr()}
        return found

    def join(*arguments: Any, **named: Any) -> Tensor:
        raise AssertionError("a step joins tensors")

    config = shape("gpt")
    model = random_model(config, VOCAB, causal=True)
    expected = run(model, PROMPTS, use_cache=False)
    monkeypatch.setattr(StaticKVCache, "__init__", init)
    monkeypatch.setattr(StaticKVCache, "extend", extend)
    monkeypatch.setattr(torch, "cat", join)
    assert run(model, PROMPTS) == expected
    (cache,) = made
    assert cache.store.shape == (config.n_layers, 2, len(PROMPTS), config.kv_heads, 7 + 15, config.attention_head_dim)


def test_a_prompt_read_in_two_parts_gives_the_states_of_one() -> None:
    """The cache's masks also serve several new positions after old ones."""
    for family in CAUSAL:
        config = shape(family)
        model = random_model(config, VOCAB, causal=True)
        tokens = torch.tensor([PROMPTS[0]])
        cache = StaticKVCache(config, torch.zeros(1, dtype=torch.int64), 7, torch.float32, tokens.device)
        found = []
        with torch.no_grad():
            for part in (slice(0, 4), slice(4, 7)):
                new = tokens[:, part]
                masks = cache.masks(new.shape[1], set(model.windows))
                positions = torch.arange(7)[part].unsqueeze(0)
                found.append(model(new, positions, kv_cache=cache, masks=masks))
                cache.filled += new.shape[1]
            torch.testing.assert_close(torch.cat(found, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_the_whole_context_can_be_filled_and_no_more() -> None:
    model = random_model(shape("gpt"), VOCAB, causal=True)  # learned positions end at 32
    assert len(run(model, PROMPTS, new=25)[0]) == 25
    with pytest.raises(ConfigError, match=r"a prompt of 7 tokens and max_new_tokens=26 do not fit .* context of 32"):
        generate_tokens(model, PROMPTS, Decoding(26, GREEDY, ENDS, NO_END))
    with pytest.raises(ConfigError, match=r"Try max_new_tokens=1, or a shorter prompt\."):
        run(model, [[5] * 31], new=2)
    assert len(run(model, [[5] * 31], new=1)[0]) == 1  # what was advised
    for tokens in (32, 40):
        with pytest.raises(ConfigError, match=rf"a prompt of {tokens} tokens fills .* Try a prompt of at most 31 tok"):
            run(model, [[5] * tokens], new=1)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_completion_ends_with_the_end_token(use_cache: bool) -> None:
    model = random_model(shape("gpt"), VOCAB, causal=True)
    free = run(model, PROMPTS, use_cache=use_cache)
    assert not any(49 in whole for whole in free)  # another token that would end one
    end = free[0][4]  # the fifth token ends a completion
    assert end is not None
    decoding = Decoding(15, GREEDY, frozenset({end, 49}), NO_END, use_cache)
    steps = list(generate_tokens(model, PROMPTS, decoding))
    for column, whole in zip(zip(*steps, strict=True), free, strict=True):
        stop = whole.index(end) if end in whole else len(whole)
        assert [new and new.token for new in column[:stop]] == whole[:stop]
        assert all(new is None for new in column[stop:])
    ends = [whole.index(end) for whole in free if end in whole]
    assert len(steps) == (max(ends) + 1 if len(ends) == 3 else 15)
    alone = generate_tokens(model, PROMPTS[:1], decoding)
    assert len(list(alone)) == free[0].index(end) + 1


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(5.0, seed=0), Sampling(5.0, top_k=3, seed=0)])
def test_suppressed_tokens_are_never_generated(sampling: Sampling) -> None:
    model = random_model(shape("gpt"), VOCAB, causal=True)
    suppress_tokens = torch.arange(VOCAB) % 2 == 0
    suppress_tokens[END] = True
    tokens = {
        token
        for prompt in run(model, PROMPTS * 4, sampling, new=20, suppress_tokens=suppress_tokens)
        for token in prompt
    }
    assert all(token is not None and token % 2 == 1 and token != END for token in tokens)
    assert len(tokens) > 3


def test_a_seed_fixes_the_tokens_and_leaves_the_global_generator() -> None:
    model = random_model(shape("gpt"), VOCAB, causal=True)
    before = torch.get_rng_state()
    first, second, other = (run(model, PROMPTS, Sampling(2.0, seed=seed)) for seed in (7, 7, 8))
    free = [run(model, PROMPTS, Sampling(2.0)) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert first == second != other
    assert free[0] != free[1]


def test_the_callers_code_between_two_tokens_can_still_differentiate() -> None:
    model = random_model(shape("gpt"), VOCAB, causal=True)
    for _ in generate_tokens(model, PROMPTS, Decoding(2, GREEDY, ENDS, NO_END)):
        assert not torch.is_inference_mode_enabled()
        loss = model(torch.tensor([[3, 4]])).sum()
        loss.backward()
    assert model.final_norm.weight.grad is not None
