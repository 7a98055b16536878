"""Continue prompts token by token, with or without a cache: the tokens are the same."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.inference.kv_cache import KeyValueCache
from pretrain.inference.sampling import Sampler, Sampling, apply_repetition_penalty
from pretrain.models.transformer import Transformer


class NewToken(NamedTuple):
    """A token that was chosen, and how likely the model found it."""

    token: int
    log_probability: float  # nats, of the model's own distribution: before temperature, penalty and limits


def generate_tokens(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    end_id: int,
    suppress_tokens: Tensor,
    use_cache: bool = True,
) -> Iterator[list[NewToken | None]]:
    """Return an iterator over the next token of every prompt, until all have ended or `max_new_tokens` have come.

    A prompt that has produced `end_id` gives None from then on. `suppress_tokens` is bool (V,): tokens never chosen.
    Prompts
    of different lengths are aligned at their ends. Raises ConfigError where the context is too short.
    """
    longest = max(len(prompt) for prompt in prompts)
    _check_room(longest, max_new_tokens, model.config.context_length)
    state = DecodingState(model, prompts, longest + max_new_tokens, use_cache)
    return _steps(state, Sampler(sampling), max_new_tokens, end_id, suppress_tokens)


def _check_room(prompt: int, new: int, context_length: int) -> None:
    if prompt >= context_length:
        raise ConfigError(
            f"a prompt of {prompt} tokens fills the model's context of {context_length} tokens, and no token fits "
            f"behind it, whatever max_new_tokens. Try a prompt of at most {context_length - 1} tokens."
        )
    if prompt + new > context_length:
        raise ConfigError(
            f"a prompt of {prompt} tokens and max_new_tokens={new} do not fit into the model's context of "
            f"{context_length} tokens. Try max_new_tokens={context_length - prompt}, or a shorter prompt."
        )


class DecodingState:
    """The rows so far, padded on the left, and what the model keeps of them."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], length: int, use_cache: bool) -> None:
        parameter = next(model.parameters())
        longest = max(len(prompt) for prompt in prompts)
        self.model = model
        self.use_cache = use_cache
        self.padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=parameter.device)
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.tensor(rows, device=parameter.device)
        self.unread = self.tokens
        self.seen = torch.zeros(len(rows), model.vocab_size, dtype=torch.bool, device=parameter.device)
        for row, prompt in enumerate(prompts):
            self.seen[row, list(prompt)] = True
        self.length = length
        self.dtype = parameter.dtype
        self.cache = self._new_cache()

    def _new_cache(self) -> KeyValueCache:
        return KeyValueCache(self.model.config, self.padding, self.length, self.dtype, self.tokens.device)

    def last_hidden(self) -> Tensor:
        """Read what has not been read and return the last position's hidden state, (B, d_model)."""
        if not self.use_cache:
            self.cache, self.unread = self._new_cache(), self.tokens
        new = self.unread.shape[1]
        places = torch.arange(self.cache.filled, self.cache.filled + new, device=self.tokens.device)
        positions = (places - self.padding.unsqueeze(1)).clamp(min=0)
        masks = self.cache.masks(new, set(self.model.windows))
        hidden: Tensor = self.model(self.unread, positions, kv_cache=self.cache, masks=masks)
        self.cache.filled += new
        return hidden[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Add one token (B,) to every row."""
        self.unread = tokens.unsqueeze(1)
        self.seen.scatter_(1, self.unread, True)
        if not self.use_cache:
            self.tokens = torch.cat((self.tokens, self.unread), dim=1)


@torch.inference_mode()  # as a decorator it holds between two tokens no longer: the caller's code runs as it did before
def _steps(
    state: DecodingState, sample: Sampler, max_new_tokens: int, end_id: int, suppress_tokens: Tensor
) -> Iterator[list[NewToken | None]]:
    alive = [True] * len(state.padding)
    for _ in range(max_new_tokens):
        logits = state.model.head(state.last_hidden()).float()
        scores = apply_repetition_penalty(logits, state.seen, sample.sampling.repetition_penalty)
        chosen = sample(scores.masked_fill(suppress_tokens, -torch.inf))
        state.append(chosen)
        likely = logits.log_softmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
        new = [NewToken(*pair) for pair in zip(chosen.tolist(), likely.tolist(), strict=True)]
        alive = [was and each.token != end_id for was, each in zip(alive, new, strict=True)]
        yield [each if going else None for each, going in zip(new, alive, strict=True)]
        if not any(alive):
            return
