"""A trained model for inference: complete prompts, fill masks, classify, embed and score texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import torch
from torch import Tensor

from pretrain.data.fine_tuning_config import prompt_templates
from pretrain.data.tokenizers.chat_template import ASSISTANT, ChatTemplate, checked_messages
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, printable
from pretrain.evaluation.bound import BoundEstimate
from pretrain.evaluation.likelihood import Score
from pretrain.evaluation.scorer import Scorer
from pretrain.inference import classification
from pretrain.inference.classification import TextOrPair
from pretrain.inference.config import FillOptions, GenerationOptions, InferenceDtype
from pretrain.inference.detokenize import Completion, FinishReason, GenerationState, StopStrings, text_pieces
from pretrain.inference.diffusion import Denoising, denoise, generate_by_denoising
from pretrain.inference.dtype import count_parameters, prepare_for_inference
from pretrain.inference.embedding import Framing, chosen_pooling, text_vectors
from pretrain.inference.fill_mask import FilledText, Prediction, mask_probabilities, predictions
from pretrain.inference.generate import Decoding, NewToken, generate_tokens
from pretrain.inference.generation_options import (
    check_options,
    check_prompts,
    denoising_options,
    listed,
    new_token_limits,
    no_template,
    sampling_of,
)
from pretrain.interop.folder import StatedVectors
from pretrain.interop.load import open_model
from pretrain.models.interface import LanguageModule
from pretrain.models.pooling import shortened
from pretrain.objectives.fine_tuning_config import ClassifyConfig, Pooling, RegressConfig
from pretrain.training.config import SavedWeights

Prompt = TypeVar("Prompt", str, list[str])


class LanguageModel:
    """A model with its tokenizer, usually made by `LanguageModel.load(run_folder)`."""

    def __init__(
        self,
        model: LanguageModule,
        tokenizer: Tokenizer,
        trained: dict[str, Any] | None = None,
        fills_masks: bool | None = None,
        starts_with_bos: bool = True,
        classifier: ClassifyConfig | None = None,
        prompt_template: tuple[str, str] | None = None,
        denoises: bool = False,
        shift_targets: bool | None = None,
        pooling: Pooling | None = None,
        regressor: RegressConfig | None = None,
        stated: StatedVectors | None = None,
        other_templates: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.pooling = pooling  # of a contrastive fine-tuning, auto without a head; none: the model predicts tokens
        self.stated = stated  # by the folder of a published model, whether it predicts tokens or not
        self.classifier = classifier
        self.regressor = regressor
        self.denoises = denoises  # trained with any share of masks: it continues a prompt by filling masks after it
        # whether the token before predicts a mask
        self.shift_targets = model.causal if shift_targets is None else shift_targets
        self.prompt_template = prompt_template  # text before and after a prompt in fine-tuning on responses
        self.other_templates = other_templates  # of pairs in several, so that none of them is the model's
        self.model: Any = model.eval()
        self.starts_with_bos = starts_with_bos  # a prompt; published models may do without
        self.fills_masks = not (model.causal or classifier or regressor) if fills_masks is None else fills_masks
        self.tokenizer = tokenizer
        self.conversation: list[dict[str, str]] = []  # of `chat`, the model's turns included
        self.trained = trained or {}  # metadata of the training: step, tokens_seen, data
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
        weights: SavedWeights | str = SavedWeights.trained,
    ) -> LanguageModel:
        """Load the model of a run, a checkpoint, or a Hugging Face folder or name.

        `dtype="int8"` quantizes its matrices to 8 bits, on CPUs; "bf16" casts the weights to 16, for GPUs.
        `weights="ema"` takes the moving average of a run with `ema.decay`; the formats of `dtype` are read there too,
        for one more version. Raises CheckpointError if there is no model or average, it is damaged, or its weights do
        not fit its settings; ConfigError if the device is not available or cannot use the dtype.
        """
        if isinstance(weights, str) and weights not in SavedWeights.__members__:
            dtype, weights = weights, SavedWeights.trained  # its earlier name
        folder = open_model(path, SavedWeights(weights))
        model = prepare_for_inference(folder.load(), device, dtype)
        objective, templates = folder.objective, prompt_templates(folder.run.data) if folder.run else []
        return cls(
            model,
            folder.tokenizer,
            folder.metadata,
            objective.fills_masks,
            folder.starts_with_bos,
            classifier=objective.classifier,
            prompt_template=templates[0] if len(templates) == 1 else None,
            denoises=objective.denoises,
            shift_targets=objective.shift_targets,
            pooling=folder.pooling,
            regressor=objective.regressor,
            stated=folder.stated,
            other_templates=templates if len(templates) > 1 else [],
        )

    @property
    def causal(self) -> bool:
        """Whether the model completes prompts from left to right; a hybrid model does and `fills_masks` too."""
        return self.model.causal and self.classifier is None and self.regressor is None

    @property
    def completes(self) -> bool:
        """Whether the model completes prompts: a causal or a diffusion model."""
        return self.causal or self.denoises

    @property
    def labels(self) -> list[str]:
        """Labels of a classifier; empty for a model that predicts tokens."""
        return [] if self.classifier is None else list(self.classifier.labels)

    @overload
    def classify(self, text: TextOrPair) -> dict[str, float]: ...
    @overload
    def classify(self, text: list[str] | list[tuple[str, str]]) -> list[dict[str, float]]: ...
    def classify(
        self, text: TextOrPair | list[str] | list[tuple[str, str]]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each label for a text or a pair of texts (a tuple), or a list for several.

        A text is cut at the context length, as in training. Raises ConfigError for a model that was not trained to
        classify.
        """
        if self.classifier is None:
            raise classification.cannot("classify")
        alone = isinstance(text, str | tuple)
        texts: Any = [text] if alone else text
        probabilities = classification.label_probabilities(self.model, self.classifier, self.tokenizer, texts)
        named = [dict(zip(self.labels, row, strict=True)) for row in probabilities.tolist()]
        return named[0] if alone else named

    @overload
    def regress(self, text: TextOrPair) -> float: ...
    @overload
    def regress(self, text: list[str] | list[tuple[str, str]]) -> list[float]: ...
    def regress(self, text: TextOrPair | list[str] | list[tuple[str, str]]) -> float | list[float]:
        """Return the number of a text or a pair of texts, or a list for several; they are read as by `classify`.

        Raises ConfigError for a model that was not trained with objective=regress.
        """
        if self.regressor is None:
            raise classification.cannot("regress")
        alone = isinstance(text, str | tuple)
        texts: Any = [text] if alone else text
        numbers = classification.predicted_numbers(self.model, self.regressor, self.tokenizer, texts).tolist()
        return numbers[0] if alone else numbers

    def check_predicts_tokens(self) -> None:
        """Raise ConfigError for a model that classifies or embeds texts, or predicts a number of one."""
        classification.refuse_tokens(self.classifier or self.regressor)
        if self.pooling is not None:
            raise ConfigError(
                "this model embeds texts and has no head that predicts tokens. "
                'Use embed("a text"), or the model that it was made of.'
            )

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Prompt:
        """Return the prompt with its completion, or a list for a batch of prompts.

        The text ends early if the model ends it, and before a stop string. A diffusion model fills masks after the
        prompt; each prompt's draw depends on the seed and on its own text. A causal model's prompts share one random
        generator and, without `max_new_tokens`, the room after the longest: for texts that do not depend on the batch,
        set temperature=0 and `max_new_tokens`, or give one prompt a call. Raises ConfigError for a masked model, and if
        prompt and completion exceed the context; DivergenceError for weights that give no probabilities.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        completions = self.complete(prompts, **options)
        texts = [text + completion.text for text, completion in zip(prompts, completions, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def respond(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Prompt:
        """Return the response to a prompt in the fine-tuning's template, or a list for prompts.

        As in fine-tuning, the spelling of a special token in a prompt is text. Options and errors as of `generate`;
        also raises ConfigError for a model without a template (`experiment=instruct`).
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = [self.response_ids(text) for text in prompts]
        texts = [completion.text.strip() for completion in self.complete(rows, strip=True, **options)]
        return texts[0] if isinstance(prompt, str) else texts

    def response_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt in the fine-tuning's template; raises ConfigError for a model without one."""
        if self.prompt_template is None:
            raise no_template(self.other_templates)
        before, after = self.prompt_template
        return self._with_bos(self.tokenizer.encode(f"{before}{prompt}{after}".rstrip()))

    def chat(self, messages: str | Sequence[Mapping[str, str]], **options: Unpack[GenerationOptions]) -> str:
        """Return the assistant's next turn, and keep the conversation with it in `conversation`.

        A text is the user's next turn of the conversation so far; messages with role and content begin another one. The
        template is that of the tokenizer. Options and errors as of `generate`; also raises ConfigError for a tokenizer
        without chat template and for messages that it refuses.
        """
        self._check_completes()
        check_options("generate", GenerationOptions, options, self.causal)
        begun = [*self.conversation, {"role": "user", "content": messages}] if isinstance(messages, str) else messages
        checked = checked_messages(list(begun))
        if isinstance(checked, str):
            raise ConfigError(f"chat() takes messages with role and content, and there is a problem: {checked}.")
        template = ChatTemplate(self.tokenizer)
        row, end_id = template.prompt(checked), template.end_id
        generation = GenerationState(self.tokenizer, row, StopStrings(options.get("stop", ())), strip=True)
        text = "".join(text_pieces(generation, self._steps([row], options, end_id))).strip()
        self.conversation = [
            *({"role": role, "content": content} for role, content in checked), {"role": ASSISTANT, "content": text}
        ]  # fmt: skip
        return text

    def complete(
        self, prompts: Sequence[str | list[int]], *, strip: bool = False, **options: Unpack[GenerationOptions]
    ) -> list[Completion]:
        """Return the completion of each prompt: its text, its tokens and their log-probabilities.

        A prompt may also be a list of ids, to which nothing is added. `strip` drops white space before the text, where
        `stop` is not looked for. Options and errors as of `generate`.
        """
        generations, steps = self._begin(prompts, options, strip)
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
        """Return an iterator over pieces of the prompt's completion; options and errors as of `generate`.

        A piece is delayed while it may begin a stop string.
        """
        (generation,), steps = self._begin([prompt], options)
        return filter(None, text_pieces(generation, steps))

    def _begin(
        self, prompts: Sequence[str | list[int]], options: GenerationOptions, strip: bool = False
    ) -> tuple[list[GenerationState], Iterator[list[NewToken | None]]]:
        """Return the state of each prompt's completion and an iterator over their tokens."""
        self._check_completes()
        check_options("generate", GenerationOptions, options, self.causal)
        stop = StopStrings(options.get("stop", ()))
        rows = [self.prompt_ids(prompt) if isinstance(prompt, str) else prompt for prompt in listed(prompts)]
        states = [
            GenerationState(self.tokenizer, row, stop, limit, strip)
            for row, limit in zip(rows, self._limits(rows, options), strict=True)
        ]
        return states, self._steps(rows, options)

    def prompt_ids(self, prompt: str, *, reads_masks: bool = True) -> list[int]:
        """Return the ids of a prompt, with BOS if it was trained so; without `reads_masks` a `[MASK]` is text."""
        return self._with_bos((self.tokenizer.encode_prompt if reads_masks else self.tokenizer.encode)(prompt))

    def _with_bos(self, row: list[int]) -> list[int]:
        return [self.tokenizer.bos_id, *row] if self.starts_with_bos or not row else row

    def _check_completes(self) -> None:
        self.check_predicts_tokens()
        if not self.completes:
            raise ConfigError(
                "this model was trained to fill masks and cannot complete a prompt. "
                'Use predict_mask("The quick [MASK] fox"), or train a causal one: objective=causal.'
            )

    def _steps(
        self, rows: list[list[int]], options: GenerationOptions, end_id: int | None = None
    ) -> Iterator[list[NewToken | None]]:
        """Return an iterator over the tokens of each completion, which ends with its document, or at `end_id`."""
        suppress, end_ids = self._suppress_next, frozenset((self.tokenizer.eos_id,))
        if end_id is not None:
            suppress, end_ids = suppress.clone(), end_ids | {end_id}
            suppress[end_id] = False
        limits = self._limits(rows, options)
        if not self.causal:
            if any(self.tokenizer.mask_id in row for row in rows):
                raise ConfigError("a prompt holds [MASK], and generate() only adds text after it. Use fill().")
            return generate_by_denoising(self.model, rows, limits, self._denoising(options, suppress, end_ids))
        use_cache = options.get("use_cache", True)
        decoding = Decoding(max(limits), sampling_of(options), end_ids, suppress, use_cache)
        return generate_tokens(self.model, rows, decoding)

    def _limits(self, rows: Sequence[Sequence[int]], options: GenerationOptions) -> list[int]:
        """Return the most new tokens of each prompt; raises ConfigError for prompts that cannot be continued."""
        check_prompts(rows, self.model.vocab_size, self.causal)
        context_length = self.model.config.context_length
        return new_token_limits([len(row) for row in rows], options.get("max_new_tokens"), context_length, self.causal)

    def _denoising(self, options: Mapping[str, Any], suppress_tokens: Tensor, end_ids: frozenset[int]) -> Denoising:
        assert self.tokenizer.mask_id is not None
        return Denoising(
            self.tokenizer.mask_id,
            suppress_tokens,
            sampling_of(options),
            end_ids,
            shift_targets=self.shift_targets,
            special_ids=self.tokenizer.special_ids,
            **denoising_options(options),
        )

    def fill(self, text: Prompt, **options: Unpack[FillOptions]) -> Prompt:
        """Return the text with a token for each [MASK], or a list for texts; the rest stays as it was written.

        A diffusion model is made for it. A masked or hybrid model can too, best with few masks. Raises ConfigError for
        a causal model, for a text without [MASK], and for one longer than the context.
        """
        self._check_fills_masks()
        check_options("fill", FillOptions, options, self.causal)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ConfigError("fill() needs at least one text, and the list is empty.")
        rows = [self._masked_row(each) for each in texts]
        *_, canvases = denoise(self.model, rows, self._denoising(options, self._suppress_in_masks, frozenset()))
        spaces = [FilledText(self.tokenizer, *pair) for pair in zip(texts, rows, strict=True)]
        filled = [each.text(canvas.found) for each, canvas in zip(spaces, canvases, strict=True)]
        return filled[0] if isinstance(text, str) else filled

    def _check_fills_masks(self) -> int:
        """Return the mask's id; raises ConfigError for a model that fills no masks."""
        self.check_predicts_tokens()
        if not self.fills_masks or self.tokenizer.mask_id is None:
            raise ConfigError(
                "this model was trained to complete prompts and cannot fill masks. "
                'Use generate("The quick"), or train a masked one: objective=masked.'
            )
        return self.tokenizer.mask_id

    def _masked_row(self, text: str) -> list[int]:
        """Return the ids of a text in which [MASK] is the tokenizer's mask, between BOS and EOS."""
        text = text.replace("[MASK]", self.tokenizer.token(self._check_fills_masks()))
        return [self.tokenizer.bos_id, *self.tokenizer.encode_prompt(text), self.tokenizer.eos_id]

    def predict_mask(self, text: str, top_k: int = 5) -> list[list[Prediction]]:
        """Return the `top_k` most likely predictions for each [MASK] of the text, in order.

        Raises ConfigError for a causal model, for a text without [MASK], and for one longer than the context.
        """
        mask_id = self._check_fills_masks()
        if not isinstance(top_k, int) or top_k < 1:
            raise ConfigError(f"top_k={top_k} is not a whole number above 0. Try top_k=5.")
        tokens = self._masked_row(text)
        probabilities = mask_probabilities(self.model, tokens, mask_id, self._suppress_in_masks, self.shift_targets)
        best = probabilities.topk(min(top_k, int((~self._suppress_in_masks).sum())), dim=-1)
        return predictions(FilledText(self.tokenizer, text, tokens), best.indices.tolist(), best.values.tolist())

    def embed(
        self,
        text: str | Sequence[str],
        pooling: Pooling | str | None = None,
        normalize: bool = False,
        dimensions: int | None = None,
    ) -> Tensor:
        """Return the vector of a text, float32 (d_model,), or of texts, (texts, d_model), on the CPU.

        `pooling` is mean, of all hidden states, those of the special tokens around the text included; first, as BERT's
        [CLS]; or last. By default that of the fine-tuning or of the folder's 1_Pooling, else mean where attention is
        bidirectional, and last where it is causal. `dimensions` keeps the first ones, before `normalize` makes the
        length 1. Raises ConfigError for a classifier, and for a text that is empty or longer than the context.
        """
        classification.refuse_vectors(self.classifier or self.regressor)
        texts = [text] if isinstance(text, str) else list(text)
        documents = self._framing(pooling).whole(texts, self.model.config.context_length)
        vectors = shortened(self._vectors(documents, pooling), dimensions, "dimensions")
        vectors = torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors
        return vectors[0] if isinstance(text, str) else vectors

    def _framing(self, pooling: Pooling | str | None) -> Framing:
        """Return the ids around a text; raises CheckpointError for a folder's vectors that are not computed here."""
        if pooling is None and self.stated is not None:
            self.stated.check()
        return Framing.of(self.tokenizer, self.stated is not None)

    def _vectors(self, documents: Sequence[Any], pooling: Pooling | str | None) -> Tensor:
        both = self.fills_masks or not self.model.causal
        stated = self.stated.pooling if self.stated is not None else None
        wanted = (stated or self.pooling or Pooling.auto) if pooling is None else pooling
        if not documents:
            return torch.empty(0, self.model.config.d_model)
        return text_vectors(self.model, self.tokenizer, documents, chosen_pooling(wanted, both), both)

    def embed_beginnings(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts, float32 (texts, d_model); what exceeds the context is cut off, as in training.

        Pooling is that of `embed`; raises ConfigError for a classifier.
        """
        classification.refuse_vectors(self.classifier or self.regressor)
        documents = self._framing(None).beginnings(texts, self.model.config.context_length)
        return torch.nn.functional.normalize(self._vectors(documents, None), dim=-1)

    def __repr__(self) -> str:
        """Return the kind of model, its number of parameters, and its training data."""
        parameters = count_parameters(self.model)
        seen = f", {self.trained['tokens_seen']:,} tokens seen" if "tokens_seen" in self.trained else ""
        data = f", data {printable(self.trained['data'], one_line=True)}" if "data" in self.trained else ""
        bidirectional = "diffusion" if self.denoises else "masked"
        kind = ("hybrid" if self.fills_masks else "causal") if self.causal else bidirectional
        if self.classifier is not None:
            kind = f"classifier of {len(self.labels)} labels"
        elif self.regressor is not None or self.pooling is not None:
            kind = "embeds texts" if self.regressor is None else "predicts a number"
        return f"LanguageModel({kind}, {parameters:,} parameters{seen}{data})"

    def bound(self, draws: int = 32) -> BoundEstimate | None:
        """Return how a diffusion model's texts are scored; None for a model that is scored without a bound."""
        return BoundEstimate(draws, self.shift_targets) if self.denoises and not self.causal else None

    @overload
    def score(self, text: str, draws: int | None = None) -> Score: ...
    @overload
    def score(self, text: list[str], draws: int | None = None) -> list[Score]: ...
    def score(self, text: str | list[str], draws: int | None = None) -> Score | list[Score]:
        """Return the log-likelihood of a text; a masked model's is a pseudo-likelihood, a diffusion model's a bound.

        A list of texts gives a list, computed in batches. A bound is estimated by `draws` random masks of each text, 32
        by default, and the score has its standard error; raises ConfigError for `draws` of another model.
        """
        self.check_predicts_tokens()
        bound = self.bound(32 if draws is None else draws)
        if bound is None and draws is not None:
            raise ConfigError(f"draws={draws} means nothing for a model that is scored without a bound. Leave it out.")
        scorer = Scorer(self.model, self.tokenizer, self.starts_with_bos, bound=bound)
        return scorer.texts([text])[0] if isinstance(text, str) else scorer.texts(text)
