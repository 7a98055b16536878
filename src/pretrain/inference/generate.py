"""Complete prompts token by token, with the same tokens with and without a KV cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.inference.kv_cache import StaticKVCache
from pretrain.inference.sampling import Sampler, Sampling, apply_repetition_penalty
from pretrain.models.interface import LanguageModule, hidden_states
from pretrain.models.transformer import Transformer


class NewToken(NamedTuple):
    """A generated token and its log-probability under the model."""

    token: int
    log_probability: float  # nats, of the model's own distribution: before temperature, penalty and limits


@dataclass(frozen=True)
class Decoding:
    """How completions are generated."""

    max_new_tokens: int
    sampling: Sampling
    end_ids: frozenset[int]  # each ends a completion
    suppress_tokens: Tensor  # bool (V,): tokens never generated
    use_cache: bool = True  # False: recompute the whole text for every token


def generate_tokens(
    model: LanguageModule, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> Iterator[list[NewToken | None]]:
    """Return an iterator over the next tokens of all prompts, until all have ended.

    A prompt that has produced one of `end_ids` gives None from then on. Prompts of different lengths are padded on the
    left. Raises ConfigError if the context is too short.
    """
    longest = max(len(prompt) for prompt in prompts)
    check_length(longest, decoding.max_new_tokens, context_length_of(model))
    if isinstance(model, Transformer):
        return _steps(CachedState(model, prompts, decoding), decoding)
    return _steps(RecomputedState(model, prompts), decoding)


def context_length_of(model: Any) -> int:
    """Return the longest context of a model that `build_model` has made."""
    return int(model.config.context_length)


def check_length(prompt: int, new: int, context_length: int) -> None:
    """Raise ConfigError if a prompt and its new tokens do not fit into the context; all in tokens."""
    if prompt >= context_length:
        raise ConfigError(
            f"a prompt of {prompt} tokens fills the model's context of {context_length} tokens, so that no new token "
            f"fits, whatever max_new_tokens. Try a prompt of at most {context_length - 1} tokens."
        )
    if prompt + new > context_length:
        raise ConfigError(
            f"a prompt of {prompt} tokens and max_new_tokens={new} do not fit into the model's context of "
            f"{context_length} tokens. Try max_new_tokens={context_length - prompt}, or a shorter prompt."
        )


class DecodingState(Protocol):
    """The rows of tokens so far."""

    model: Any
    seen: Tensor  # bool (B, V): tokens of each row so far

    def last_hidden(self) -> Tensor:
        """Return the hidden state of each row's last token, (B, d_model)."""
        ...

    def append(self, tokens: Tensor) -> None:
        """Append one token to every row; `tokens` is (B,)."""
        ...


class RecomputedState:
    """Rows padded on the right, which a causal model reads anew for every token: for any model, without a cache."""

    def __init__(self, model: LanguageModule, prompts: Sequence[Sequence[int]]) -> None:
        device = next(model.parameters()).device
        self.model: Any = model
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.tokens = torch.zeros(len(prompts), int(self.lengths.max()), dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            self.tokens[row, : len(prompt)] = torch.tensor(list(prompt), device=device)
        self.seen = seen_tokens(prompts, self.model.vocab_size, device)

    def last_hidden(self) -> Tensor:
        """Run the model on all tokens; return the hidden state of each row's last token, (B, d_model)."""
        hidden = hidden_states(self.model, self.tokens)
        return hidden[torch.arange(len(hidden), device=hidden.device), self.lengths - 1]

    def append(self, tokens: Tensor) -> None:
        """Append one token to every row; `tokens` is (B,)."""
        if int(self.lengths.max()) == self.tokens.shape[1]:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, 1))
        self.tokens.scatter_(1, self.lengths.unsqueeze(1), tokens.unsqueeze(1))
        self.lengths += 1
        self.seen.scatter_(1, tokens.unsqueeze(1), True)


def seen_tokens(prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Return which tokens each prompt holds, bool (B, V)."""
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    return seen


class CachedState:
    """The rows of tokens so far, padded on the left, with their KV cache."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
        parameter = next(model.parameters())
        longest = max(len(prompt) for prompt in prompts)
        self.model = model
        self.use_cache = decoding.use_cache
        self.padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=parameter.device)
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.tensor(rows, device=parameter.device)
        self.unread = self.tokens
        self.seen = seen_tokens(prompts, model.vocab_size, parameter.device)
        self.length = longest + decoding.max_new_tokens
        self.dtype = parameter.dtype
        self.cache = self._new_cache()

    def _new_cache(self) -> StaticKVCache:
        return StaticKVCache(self.model.config, self.padding, self.length, self.dtype, self.tokens.device)

    def last_hidden(self) -> Tensor:
        """Run the model on unread tokens; return the last position's hidden state, (B, d_model)."""
        if not self.use_cache:
            self.cache, self.unread = self._new_cache(), self.tokens
        new = self.unread.shape[1]
        columns = torch.arange(self.cache.filled, self.cache.filled + new, device=self.tokens.device)
        positions = (columns - self.padding.unsqueeze(1)).clamp(min=0)
        masks = self.cache.masks(new, set(self.model.windows))
        hidden: Tensor = self.model(self.unread, positions, kv_cache=self.cache, masks=masks)
        self.cache.filled += new
        return hidden[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Append one token to every row; `tokens` is (B,)."""
        self.unread = tokens.unsqueeze(1)
        self.seen.scatter_(1, self.unread, True)
        if not self.use_cache:
            self.tokens = torch.cat((self.tokens, self.unread), dim=1)


@torch.inference_mode()  # as a decorator it is off while the caller's code runs between two tokens
def _steps(state: DecodingState, decoding: Decoding) -> Iterator[list[NewToken | None]]:
    sample = Sampler(decoding.sampling)
    running = [True] * len(state.seen)
    for _ in range(decoding.max_new_tokens):
        logits = state.model.head(state.last_hidden()).float()
        scores = apply_repetition_penalty(logits, state.seen, decoding.sampling.repetition_penalty)
        chosen = sample(scores.masked_fill(decoding.suppress_tokens, -torch.inf))
        state.append(chosen)
        log_probabilities = logits.log_softmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        new = [NewToken(*pair) for pair in zip(chosen.tolist(), log_probabilities.tolist(), strict=True)]
        running = [was and token.token not in decoding.end_ids for was, token in zip(running, new, strict=True)]
        yield [token if runs else None for token, runs in zip(new, running, strict=True)]
        if not any(running):
            return
