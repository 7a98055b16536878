"""A trained model to use: continue prompts, fill masks, score texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import torch
from torch import Tensor

from pretrain.data.fine_tuning_config import PairsConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, nearest, printable
from pretrain.evaluation.likelihood import Score
from pretrain.evaluation.scorer import Scorer
from pretrain.inference.classification import label_probabilities
from pretrain.inference.config import GenerationOptions, InferenceDtype
from pretrain.inference.detokenize import Completion, FinishReason, GenerationState, StopStrings
from pretrain.inference.dtype import count_parameters, prepare_for_inference
from pretrain.inference.fill_mask import Prediction, mask_probabilities, text_with_masks
from pretrain.inference.generate import NewToken, generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.interop.load import open_model
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import ClassifyConfig

Prompt = TypeVar("Prompt", str, list[str])

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


class LanguageModel:
    """A model with its tokenizer. `LanguageModel.load(run_folder)` is the usual way to one."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        trained: dict[str, Any] | None = None,
        fills_masks: bool | None = None,
        starts_with_bos: bool = True,
        classifier: ClassifyConfig | None = None,
        prompt_template: tuple[str, str] | None = None,
    ) -> None:
        self.classifier = classifier
        self.prompt_template = prompt_template  # what it was taught to find before and behind a prompt to respond to
        self.model = model.eval()
        self.starts_with_bos = starts_with_bos  # a prompt; a model from elsewhere may not know it so
        self.fills_masks = not (model.causal or classifier) if fills_masks is None else fills_masks
        self.tokenizer = tokenizer
        self.trained = trained or {}  # step, tokens seen and the like
        everything = torch.arange(model.vocab_size, device=next(model.parameters()).device)
        special = torch.tensor(sorted(tokenizer.special_ids), device=everything.device)
        self._suppress_in_masks = torch.isin(everything, special) | (everything >= tokenizer.vocab_size)
        self._suppress_next = self._suppress_in_masks & (everything != tokenizer.eos_id)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: InferenceDtype | str = InferenceDtype.fp32,
        *,
        weights: str | None = None,
    ) -> LanguageModel:
        """Return the model at `path`: of a run's newest checkpoint, a checkpoint, or a Hugging Face folder or name.

        `dtype="int8"` quantizes its matrices to 8 bits, on CPUs; "bf16" casts the weights to 16, for GPUs. `weights` is
        the earlier name of `dtype`, read for one version more. Raises CheckpointError if there is no model, it is
        damaged, or its weights do not fit its settings; ConfigError if the device is not available or cannot use the
        dtype.
        """
        found = open_model(path)
        model = prepare_for_inference(found.load(), device, weights or dtype)
        objective = found.objective
        classifier = objective if isinstance(objective, ClassifyConfig) else None
        data = found.run.data if found.run else None
        around = data.prompt_template() if isinstance(data, PairsConfig) else None
        return cls(
            model, found.tokenizer, found.metadata, objective.fills_masks, found.starts_with_bos, classifier, around
        )

    @property
    def causal(self) -> bool:
        """Whether the model continues prompts; one that `fills_masks` too was trained for both."""
        return self.model.causal and self.classifier is None

    @property
    def labels(self) -> list[str]:
        """What a classifier tells apart; nothing for a model that predicts tokens."""
        return [] if self.classifier is None else list(self.classifier.labels)

    @overload
    def classify(self, text: str) -> dict[str, float]: ...
    @overload
    def classify(self, text: list[str]) -> list[dict[str, float]]: ...
    def classify(self, text: str | list[str]) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each label for a text; a list of texts gives a list, read in batches.

        Of a text longer than the context its beginning is read, as in training. Raises ConfigError for a model that was
        not trained to classify.
        """
        if self.classifier is None:
            raise ConfigError(
                "this model was not trained to classify texts. Fine-tune it: "
                "python src/train.py experiment=classify init_from=<this model> data.path=<lines of text, tab, label>."
            )
        texts = [text] if isinstance(text, str) else text
        found = label_probabilities(self.model, self.classifier, self.tokenizer, texts)
        named = [dict(zip(self.labels, row, strict=True)) for row in found.tolist()]
        return named[0] if isinstance(text, str) else named

    def _refuse_classifier(self) -> None:
        if self.classifier is not None:
            raise ConfigError(
                f"this model was trained to classify texts ({', '.join(self.labels[:5])}) and predicts no tokens. "
                'Use classify("a text"), or the base that it was made of.'
            )

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Prompt:
        """Return the prompt with its continuation; a list of prompts gives a list, read side by side.

        The text ends early where the model ends it, and before a stop string. Raises ConfigError for a masked model,
        and where prompt and continuation exceed the context.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        found = self.continuations(prompts, **options)
        texts = [text + each.text for text, each in zip(prompts, found, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def respond(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Prompt:
        """Return the response to a prompt, or those to a list of them, in the form that fine-tuning has taught.

        As in fine-tuning, the spelling of a special token in a prompt is text.
        Raises ConfigError for a model that was not taught to respond (`experiment=instruct`); else like `generate`.
        """
        if self.prompt_template is None:
            raise ConfigError(
                "this model was not taught to respond to prompts, only to continue them: use generate(). Or fine-tune "
                "it: python src/train.py experiment=instruct init_from=<this model> data.path=<pairs.jsonl>."
            )
        before, behind = self.prompt_template
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = [self._with_bos(self.tokenizer.encode(f"{before}{text}{behind}".rstrip())) for text in prompts]
        found = self.continuations(rows, **options)
        texts = [each.text.strip() for each in found]
        return texts[0] if isinstance(prompt, str) else texts

    def continuations(
        self, prompts: Sequence[str | list[int]], **options: Unpack[GenerationOptions]
    ) -> list[Completion]:
        """Return what the model writes behind each prompt: its text, its tokens and how likely each was.

        A prompt may also be given as ids, to which nothing is added; else like `generate`.
        """
        generations, steps = self._begin(prompts, options)
        for step in steps:
            for generation, token in zip(generations, step, strict=True):
                if generation.finish_reason is None:
                    generation.add(token)
            if all(generation.finish_reason is not None for generation in generations):
                break
        for generation in generations:
            generation.end(FinishReason.length)
        return [generation.completion() for generation in generations]

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """Return an iterator over the pieces of the prompt's continuation as they come; else like `generate`.

        A piece is held back for as long as it may be the beginning of a stop string.
        """
        (generation,), steps = self._begin([prompt], options)
        return filter(None, _pieces(generation, steps))

    def _begin(
        self, prompts: Sequence[str | list[int]], options: GenerationOptions
    ) -> tuple[list[GenerationState], Iterator[list[NewToken | None]]]:
        """Return a writing for each prompt, and what gives them their tokens."""
        known = GenerationOptions.__annotations__
        for name in options:
            if name not in known:
                raise ConfigError(f"{name} is not an option of generate(). {nearest(name, known)}")
        chosen: dict[str, Any] = {name: value for name, value in options.items() if name in _SAMPLING}
        sampling = Sampling(**chosen)
        stop = StopStrings(options.get("stop", ()))
        rows = [self.prompt_ids(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        steps = self._steps(rows, options.get("max_new_tokens"), sampling, options.get("use_cache", True))
        return [GenerationState(self.tokenizer, row, stop) for row in rows], steps

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids that the model reads for a prompt, with what begins a document where it knows that."""
        return self._with_bos(self.tokenizer.encode_prompt(prompt))

    def _with_bos(self, row: list[int]) -> list[int]:
        return [self.tokenizer.bos_id, *row] if self.starts_with_bos or not row else row

    def _steps(
        self, rows: list[list[int]], max_new_tokens: int | None, sampling: Sampling, use_cache: bool
    ) -> Iterator[list[NewToken | None]]:
        self._refuse_classifier()
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
        return generate_tokens(
            self.model,
            rows,
            max_new_tokens=min(100, room) if max_new_tokens is None else max_new_tokens,
            sampling=sampling,
            end_id=self.tokenizer.eos_id,
            suppress_tokens=self._suppress_next,
            use_cache=use_cache,
        )

    def predict_mask(self, text: str, top_k: int = 5) -> list[list[Prediction]]:
        """Return for each [MASK] of the text, in order, its `top_k` likeliest answers.

        Raises ConfigError for a causal model, for a text without [MASK], and for one longer than the context.
        """
        self._refuse_classifier()
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
        probabilities = mask_probabilities(self.model, tokens, self.tokenizer.mask_id, self._suppress_in_masks)
        places = [place for place, token in enumerate(inner) if token == self.tokenizer.mask_id]
        best = probabilities.topk(min(top_k, int((~self._suppress_in_masks).sum())), dim=-1)
        return [
            [self._prediction(inner, place, token, p) for token, p in zip(ids.tolist(), values.tolist(), strict=True)]
            for place, ids, values in zip(places, best.indices, best.values, strict=True)
        ]

    def _prediction(self, tokens: Sequence[int], place: int, token: int, probability: float) -> Prediction:
        filled = [*tokens[:place], token, *tokens[place + 1 :]]
        return Prediction(self.tokenizer.decode([token]), probability, text_with_masks(self.tokenizer, filled))

    @torch.inference_mode()
    def embed(self, text: str | list[str]) -> Tensor:
        """Return one vector for each text, float32 (d_model,) or (texts, d_model): the mean of its last hidden states.

        Special tokens do not count. Raises ConfigError for a causal model, whose early positions have seen too little,
        and for a text that is empty or longer than the context.
        """
        self._refuse_classifier()
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
        row = torch.tensor(
            [[self.tokenizer.bos_id, *tokens, self.tokenizer.eos_id]], device=self._suppress_in_masks.device
        )
        both_ways = torch.zeros(1, dtype=torch.bool, device=row.device) if self.causal else None
        hidden: Tensor = self.model(row, is_causal=both_ways)
        return hidden[0, 1:-1].float().mean(0)

    def __repr__(self) -> str:
        """Return what this is: family, parameters, and what it was trained on."""
        parameters = count_parameters(self.model)
        seen = f", {self.trained['tokens_seen']:,} tokens seen" if "tokens_seen" in self.trained else ""
        data = f", data {printable(self.trained['data'], one_line=True)}" if "data" in self.trained else ""
        if self.classifier is not None:
            return f"LanguageModel(classifier of {len(self.labels)} labels, {parameters:,} parameters{seen}{data})"
        family = ("hybrid" if self.fills_masks else "causal") if self.causal else "masked"
        return f"LanguageModel({family}, {parameters:,} parameters{seen}{data})"

    @overload
    def score(self, text: str) -> Score: ...
    @overload
    def score(self, text: list[str]) -> list[Score]: ...
    def score(self, text: str | list[str]) -> Score | list[Score]:
        """Return how likely the model finds a text; for a model that only fills masks its pseudo-likelihood.

        A list of texts gives a list, read in batches.
        """
        found = self.scores([text] if isinstance(text, str) else text)
        return found[0] if isinstance(text, str) else found

    def scores(self, texts: Sequence[str]) -> list[Score]:
        """Return how likely the model finds each text, read in batches; the same as `score` of each, and faster."""
        self._refuse_classifier()
        return Scorer(self.model, self.tokenizer, self.starts_with_bos).texts(texts)


def _pieces(generation: GenerationState, steps: Iterator[list[NewToken | None]]) -> Iterator[str]:
    for step in steps:
        yield generation.add(step[0])
        if generation.finish_reason is not None:
            return
    yield generation.end(FinishReason.length)
