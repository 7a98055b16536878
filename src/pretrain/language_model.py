"""A trained model to use: continue prompts, fill masks, score texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.evaluation.likelihood import Score, causal_log_likelihoods, masked_log_likelihoods
from pretrain.inference.fill_mask import mask_probabilities
from pretrain.inference.generate import continue_prompts
from pretrain.inference.sampling import Sampling
from pretrain.model_folder import open_model
from pretrain.models.transformer import Transformer

Prompt = TypeVar("Prompt", str, list[str])


@dataclass(frozen=True)
class Prediction:
    """One answer for one mask."""

    token: str
    probability: float
    text: str  # the whole text with this answer in place of the mask, other masks still open


class LanguageModel:
    """A model with its tokenizer. `LanguageModel.load(run_folder)` is the usual way to one."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        trained: dict[str, Any] | None = None,
        fills_masks: bool | None = None,
        starts_with_bos: bool = True,
    ) -> None:
        self.model = model.eval()
        self.starts_with_bos = starts_with_bos  # a prompt; a model from elsewhere may not know it so
        self.fills_masks = not model.causal if fills_masks is None else fills_masks
        self.tokenizer = tokenizer
        self.trained = trained or {}  # step, tokens seen and the like, from the checkpoint
        everything = torch.arange(model.vocab_size, device=next(model.parameters()).device)
        special = torch.tensor(sorted(tokenizer.special_ids), device=everything.device)
        self._no_answer = torch.isin(everything, special) | (everything >= tokenizer.vocab_size)
        self._not_next = self._no_answer & (everything != tokenizer.eos_id)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> LanguageModel:
        """Return the model at `path`: of a run's newest checkpoint, a checkpoint, or a Hugging Face folder or name.

        Raises CheckpointError where there is none, it is damaged, or its weights do not fit its settings.
        """
        found = open_model(path)
        model = found.load().to(device)
        return cls(model, found.tokenizer, found.facts, found.objective.fills_masks, found.starts_with_bos)

    @property
    def causal(self) -> bool:
        """Whether the model continues prompts; one that `fills_masks` too was trained for both."""
        return self.model.causal

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        use_cache: bool = True,
    ) -> Prompt:
        """Return the prompt with its continuation; a list of prompts gives a list, read side by side.

        Without `max_new_tokens` it is as long as the context allows, 100 tokens at most. `temperature=0` always takes
        the likeliest token; `top_k` and `top_p` leave out unlikely ones; a `repetition_penalty` above 1 discourages
        what was said; the same `seed` gives the same text. A text ends early where the model ends it. Raises
        ConfigError for a masked model, and where prompt and continuation exceed the context.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        rows = self._rows(prompts)
        columns = list(zip(*self._steps(rows, max_new_tokens, sampling, use_cache), strict=True))
        texts = [
            text + self.tokenizer.decode_after(row, [token for token in column if token is not None])
            for text, row, column in zip(prompts, rows, columns, strict=True)
        ]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Return an iterator over the pieces of the prompt's continuation as they come; else like `generate`."""
        rows = self._rows([prompt])
        steps = self._steps(
            rows, max_new_tokens, Sampling(temperature, top_k, top_p, repetition_penalty, seed), use_cache=True
        )
        return self._pieces(rows[0], (step[0] for step in steps))

    def _rows(self, prompts: list[str]) -> list[list[int]]:
        """Return the ids of each prompt."""
        bos = [self.tokenizer.bos_id]
        rows = [self.tokenizer.encode_prompt(text) for text in prompts]
        return [bos + row if self.starts_with_bos or not row else row for row in rows]

    def _steps(
        self, rows: list[list[int]], max_new_tokens: int | None, sampling: Sampling, use_cache: bool
    ) -> Iterator[list[int | None]]:
        if not self.causal:
            raise ConfigError(
                "this model was trained to fill masks and cannot continue a prompt. "
                'Use predict_mask("The quick [MASK] fox"), or train a causal one: objective=causal.'
            )
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens} is below 1. Try max_new_tokens=100.")
        if not rows:
            raise ConfigError("generate() needs at least one prompt, and the list is empty.")
        room = max(1, self.model.config.context_length - max(len(row) for row in rows))
        return continue_prompts(
            self.model,
            rows,
            max_new_tokens=min(100, room) if max_new_tokens is None else max_new_tokens,
            sampling=sampling,
            end_id=self.tokenizer.eos_id,
            forbidden=self._not_next,
            use_cache=use_cache,
        )

    def _pieces(self, row: list[int], tokens: Iterator[int | None]) -> Iterator[str]:
        """Yield new text behind the prompt `row` once it is whole: a character may take several tokens."""
        before, pending = list(row), list[int]()
        for token in tokens:
            if token is None:
                break
            pending.append(token)
            text = self.tokenizer.decode_after(before, pending)
            if text and not text.endswith("\ufffd"):
                yield text
                before, pending = pending, []
        if pending:
            yield self.tokenizer.decode_after(before, pending)

    def predict_mask(self, text: str, top_k: int = 5) -> list[list[Prediction]]:
        """Return for each [MASK] of the text, in order, its `top_k` likeliest answers.

        Raises ConfigError for a causal model, for a text without [MASK], and for one longer than the context.
        """
        if not self.fills_masks or self.tokenizer.mask_id is None:
            raise ConfigError(
                "this model was trained to continue prompts and cannot fill masks. "
                'Use generate("The quick"), or train a masked one: objective=masked.'
            )
        if top_k < 1:
            raise ConfigError(f"top_k={top_k} is below 1. Try top_k=5.")
        text = text.replace("[MASK]", self.tokenizer.token(self.tokenizer.mask_id))
        inner = self.tokenizer.encode_prompt(text)
        tokens = [self.tokenizer.bos_id, *inner, self.tokenizer.eos_id]
        probabilities = mask_probabilities(self.model, tokens, self.tokenizer.mask_id, self._no_answer)
        places = [place for place, token in enumerate(inner) if token == self.tokenizer.mask_id]
        best = probabilities.topk(min(top_k, int((~self._no_answer).sum())), dim=-1)
        return [
            [self._prediction(inner, place, token, p) for token, p in zip(ids.tolist(), values.tolist(), strict=True)]
            for place, ids, values in zip(places, best.indices, best.values, strict=True)
        ]

    def _prediction(self, tokens: Sequence[int], place: int, token: int, probability: float) -> Prediction:
        filled = [*tokens[:place], token, *tokens[place + 1 :]]
        return Prediction(self.tokenizer.decode([token]), probability, self._readable(filled))

    def _readable(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens with masks that are still open shown as [MASK]."""
        text = ""
        start = 0
        for place, token in enumerate(tokens):
            if token == self.tokenizer.mask_id:
                text += self.tokenizer.decode(tokens[start:place])
                text += "[MASK]" if not text or text[-1].isspace() else " [MASK]"  # a mask may have taken the space
                start = place + 1
        return text + self.tokenizer.decode(tokens[start:])

    @torch.inference_mode()
    def embed(self, text: str | list[str]) -> Tensor:
        """Return one vector for each text, float32 (d_model,) or (texts, d_model): the mean of its last hidden states.

        Special tokens do not count. Raises ConfigError for a causal model, whose early positions have seen too little,
        and for a text that is empty or longer than the context.
        """
        if not self.fills_masks:
            raise ConfigError(
                "this model reads from left to right only, so its states do not stand for a whole text. "
                "Embed with a masked model: objective=masked."
            )
        if not isinstance(text, str):
            return torch.stack([self.embed(each) for each in text])
        tokens = self.tokenizer.encode(text)
        if not tokens or len(tokens) + 2 > self.model.config.context_length:
            raise ConfigError(
                f"a text of {len(tokens)} tokens cannot be embedded: between 1 and "
                f"{self.model.config.context_length - 2} fit. Try a shorter text, or embed its parts."
            )
        row = torch.tensor([[self.tokenizer.bos_id, *tokens, self.tokenizer.eos_id]], device=self._no_answer.device)
        both_ways = torch.zeros(1, dtype=torch.bool, device=row.device) if self.causal else None
        hidden: Tensor = self.model(row, causal_rows=both_ways)
        return hidden[0, 1:-1].float().mean(0)

    def __repr__(self) -> str:
        """Return what this is: family, parameters, and what it was trained on."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        seen = f", {self.trained['tokens_seen']:,} tokens seen" if "tokens_seen" in self.trained else ""
        data = f", data {self.trained['data']}" if "data" in self.trained else ""
        family = ("hybrid" if self.fills_masks else "causal") if self.causal else "masked"
        return f"LanguageModel({family}, {parameters:,} parameters{seen}{data})"

    def score(self, text: str) -> Score:
        """Return how likely the model finds a text; for a model that only fills masks its pseudo-likelihood."""
        tokens = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        if self.causal:
            found = causal_log_likelihoods(self.model, tokens)
        elif self.tokenizer.mask_id is None:
            raise ConfigError("this model's tokenizer has no mask token, so a text cannot be scored.")
        else:
            tokens.append(self.tokenizer.eos_id)
            found = masked_log_likelihoods(self.model, tokens, self.tokenizer.mask_id, self.tokenizer.special_ids)
        return Score(float(found.double().sum()), len(found), len(text.encode()))
