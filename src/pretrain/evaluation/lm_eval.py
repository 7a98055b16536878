"""A causal model for lm-eval (the evaluation harness of EleutherAI) to drive; needs the extra `lm-eval`.

import lm_eval
from pretrain.evaluation.lm_eval import LMEvalAdapter

lm_eval.simple_evaluate(LMEvalAdapter("logs/gpt_nano/<time>"), tasks=["blimp", "lambada_openai"])
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from pretrain.errors import ConfigError
from pretrain.evaluation.likelihood import BATCH_TOKENS, Ints, Passage
from pretrain.evaluation.scorer import Progress, Scorer
from pretrain.inference.config import GenerationOptions
from pretrain.language_model import LanguageModel

MAX_NEW_TOKENS = 256  # where a task sets no limit, as in lm-eval's own models


PROMPTS_AT_ONCE = 16


class LMEvalAdapter(LM):
    """Answers lm-eval's three kinds of requests with one of our models. A request is anything with `args`."""

    def __init__(
        self, model: LanguageModel | str | Path, batch_tokens: int = BATCH_TOKENS, device: str = "cpu"
    ) -> None:
        """`model` may be whatever `LanguageModel.load` takes; raises ConfigError for a masked model."""
        super().__init__()
        self.language_model = model if isinstance(model, LanguageModel) else LanguageModel.load(model, device)
        if not self.language_model.causal:
            raise ConfigError(
                "lm-eval asks what a text goes on with, and this model was trained to fill masks. "
                "Score it with python src/eval.py task=minimal_pairs, or take a causal model."
            )
        self.batch_tokens = batch_tokens

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's fingerprint, by which lm-eval keeps cached requests apart."""
        return self.language_model.tokenizer.fingerprint

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood in nats, and whether it is the greedy one."""
        found = self._scorer("loglikelihood", disable_tqdm).continuations([request.args for request in requests])
        return [(score.log_likelihood, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text in nats, read in windows of which the last is full, too."""
        scorer, tokenizer = self._scorer("loglikelihood_rolling", disable_tqdm), self.language_model.tokenizer
        length = self.language_model.model.config.context_length
        windows = [
            rolling_windows(np.array([tokenizer.bos_id, *tokenizer.encode(request.args[0])], np.int64), length)
            for request in requests
        ]
        found = iter(scorer.predictions([passage for each in windows for passage in each]))
        return [sum(float(next(found).log_probabilities.double().sum()) for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what each (context, options) is continued with, up to one of the strings in the option `until`.

        Of a context that leaves too little room its end is read; half of the model's context is the most that is
        written.
        """
        alike = defaultdict[str, list[int]](list)
        for number, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(number)
        texts = [""] * len(requests)
        for numbers in alike.values():
            options = self._options(requests[numbers[0]].args[1])
            prompts = {number: self._prompt(requests[number].args[0], options) for number in numbers}
            by_length = sorted(numbers, key=lambda number: len(prompts[number]))
            for start in range(0, len(by_length), PROMPTS_AT_ONCE):
                chosen = by_length[start : start + PROMPTS_AT_ONCE]
                written = self.language_model.continuations([prompts[number] for number in chosen], **options)
                for number, each in zip(chosen, written, strict=True):
                    texts[number] = each.text
        return texts

    def _scorer(self, name: str, quiet: bool) -> Scorer:
        llm = self.language_model
        scorer = Scorer(llm.model, llm.tokenizer, llm.starts_with_bos, self.batch_tokens)
        if not quiet:
            scorer.report = Progress(name)
        return scorer

    def _options(self, asked: dict[str, Any]) -> GenerationOptions:
        """Return our options for lm-eval's, which are those of transformers; greedy unless `do_sample` is true."""
        until = asked.get("until") or []
        most = max(1, self.language_model.model.config.context_length // 2)
        options: GenerationOptions = {
            "stop": [until] if isinstance(until, str) else list(until),
            "max_new_tokens": min(int(asked.get("max_gen_toks", MAX_NEW_TOKENS)), most),
            "temperature": float(asked.get("temperature", 1.0)) if asked.get("do_sample") else 0.0,
        }
        for name in ("top_k", "top_p", "min_p"):
            if asked.get("do_sample") and asked.get(name):
                options[name] = asked[name]
        return options

    def _prompt(self, context: str, options: GenerationOptions) -> list[int]:
        """Return the ids of a context, as many of its last as leave room for what is to be written."""
        llm = self.language_model
        new = options["max_new_tokens"] or 0
        return llm.prompt_ids(context)[-(llm.model.config.context_length - new) :]


def rolling_windows(tokens: Ints, length: int) -> list[Passage]:
    """Return passages that predict each token but the first once, each with up to `length` tokens to read.

    The last one reads tokens again, so that its first prediction has as many before it as fit.
    """
    starts = range(0, len(tokens) - 1, length)
    ends = [min(start + length + 1, len(tokens)) for start in starts]
    firsts = [max(0, end - length - 1) for end in ends]
    return [
        Passage(tokens[first:end], start + 1 - first) for start, first, end in zip(starts, firsts, ends, strict=True)
    ]
