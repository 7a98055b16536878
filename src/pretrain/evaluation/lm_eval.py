"""Adapter of a causal or diffusion model to lm-eval, EleutherAI's evaluation harness; needs the extra `lm-eval`.

import lm_eval
from pretrain.evaluation.lm_eval import LMEvalAdapter

lm_eval.simple_evaluate(LMEvalAdapter("logs/gpt_nano/<time>"), tasks=["blimp", "lambada_openai"])
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from pretrain.errors import ConfigError
from pretrain.evaluation.likelihood import BATCH_TOKENS, Ints, Passage
from pretrain.evaluation.scorer import Progress, Scorer
from pretrain.inference.config import GenerationOptions
from pretrain.language_model import LanguageModel
from pretrain.program import command

MAX_NEW_TOKENS = 256  # default of lm-eval's own models, for tasks without a limit
MAX_PROMPTS = 16  # generated in one batch


class LMEvalAdapter(LM):
    """Answers lm-eval's three kinds of requests. A request is any object with `args`."""

    def __init__(
        self, model: LanguageModel | str | Path, batch_tokens: int = BATCH_TOKENS, device: str = "cpu"
    ) -> None:
        """`model` may be anything that `LanguageModel.load` accepts.

        Raises ConfigError for a masked model, and for one that classifies or embeds texts.
        """
        super().__init__()
        self.language_model = model if isinstance(model, LanguageModel) else LanguageModel.load(model, device)
        self.language_model.check_predicts_tokens()
        if not self.language_model.completes:
            raise ConfigError(
                "lm-eval needs a causal or diffusion model, and this one was trained to fill masks. "
                f"Score it with {command('eval')} task=minimal_pairs."
            )
        self.batch_tokens = batch_tokens

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's fingerprint, which lm-eval puts into the keys of cached requests."""
        return self.language_model.tokenizer.fingerprint

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return each (context, continuation)'s log-likelihood in nats, and whether greedy decoding generates it.

        A diffusion model's is a bound, and it decodes from left to right. Requests of one document share masks; where a
        request names none, those of one context do.
        """
        pairs = [request.args for request in requests]
        sizes = [len(list(same)) for _, same in groupby(requests, key=_document)]
        scores = self._scorer("loglikelihood", disable_tqdm).continuations(pairs, sizes, needs_greedy=True)
        return [(score.log_likelihood, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text in nats, or its bound, read in windows of full length."""
        scorer, tokenizer = self._scorer("loglikelihood_rolling", disable_tqdm), self.language_model.tokenizer
        length = self.language_model.model.config.context_length - int(scorer.bound is not None)
        windows = [
            rolling_windows(np.array([tokenizer.bos_id, *tokenizer.encode(request.args[0])], np.int64), length)
            for request in requests
        ]
        if scorer.bound is not None:
            found = iter(scorer.bounds_of([[passage] for passages in windows for passage in passages]))
            return [sum(next(found).log_likelihood for _ in passages) for passages in windows]
        predicted = iter(scorer.predictions([passage for passages in windows for passage in passages]))
        return [sum(float(next(predicted).log_probabilities.double().sum()) for _ in passages) for passages in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the completion of each (context, options), up to one of the strings in the option `until`.

        Contexts are truncated at their beginning to leave room for the new tokens, at most half of the context length.
        """
        same_options = defaultdict[str, list[int]](list)
        for number, request in enumerate(requests):
            same_options[repr(sorted(request.args[1].items()))].append(number)
        texts = [""] * len(requests)
        for numbers in same_options.values():
            options = self._options(requests[numbers[0]].args[1])
            prompts = {number: self._prompt(requests[number].args[0], options) for number in numbers}
            by_length = sorted(numbers, key=lambda number: len(prompts[number]))
            for start in range(0, len(by_length), MAX_PROMPTS):
                chosen = by_length[start : start + MAX_PROMPTS]
                completions = self.language_model.complete([prompts[number] for number in chosen], **options)
                for number, completion in zip(chosen, completions, strict=True):
                    texts[number] = completion.text
        return texts

    def _scorer(self, name: str, quiet: bool) -> Scorer:
        llm = self.language_model
        scorer = Scorer(llm.model, llm.tokenizer, llm.starts_with_bos, self.batch_tokens, bound=llm.bound())
        if not quiet:
            scorer.report = Progress(name)
        return scorer

    def _options(self, theirs: dict[str, Any]) -> GenerationOptions:
        """Return our options for lm-eval's, which are those of transformers; greedy unless `do_sample` is true."""
        until, sampled = theirs.get("until") or [], theirs.get("do_sample")
        most = max(1, self.language_model.model.config.context_length // 2)
        options: GenerationOptions = {
            "stop": [until] if isinstance(until, str) else list(until),
            "max_new_tokens": min(int(theirs.get("max_gen_toks", MAX_NEW_TOKENS)), most),
            "temperature": float(theirs.get("temperature", 1.0)) if sampled else 0.0,
        }
        if not self.language_model.causal and not sampled:
            options["order"] = "confidence"  # a random order would give another text each time
        for name in ("top_k", "top_p", "min_p"):
            if sampled and theirs.get(name):
                options[name] = theirs[name]
        return options

    def _prompt(self, context: str, options: GenerationOptions) -> list[int]:
        """Return the last ids of a context, as many as leave room for the new tokens."""
        llm = self.language_model
        new = options["max_new_tokens"] or 0
        return llm.prompt_ids(context, reads_masks=False)[-(llm.model.config.context_length - new) :]


def _document(request: Any) -> tuple[Any, ...]:
    """Return what requests that are compared with each other have in common: task and document, or the context."""
    number = getattr(request, "doc_id", None)
    return (request.args[0],) if number is None else (getattr(request, "task_name", None), number)


def rolling_windows(tokens: Ints, length: int) -> list[Passage]:
    """Return passages of up to `length` input tokens in which every token but the first is a target once.

    The last passage repeats inputs of the one before, so that it is full too.
    """
    starts = range(0, len(tokens) - 1, length)
    ends = [min(start + length + 1, len(tokens)) for start in starts]
    firsts = [max(0, end - length - 1) for end in ends]
    return [
        Passage(tokens[first:end], start + 1 - first) for start, first, end in zip(starts, firsts, ends, strict=True)
    ]
