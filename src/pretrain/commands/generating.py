"""`pretrain generate`: complete, respond, converse, fill or predict masks, classify, with one model."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.commands.output_file import check_writable
from pretrain.config.setting import read_escapes
from pretrain.errors import ConfigError, printable, shown
from pretrain.inference.canvas_trace import Trace
from pretrain.inference.config import GenerateConfig
from pretrain.inference.detokenize import Completion
from pretrain.interop import load as loading
from pretrain.language_model import LanguageModel

REPETITION_PENALTY = 1.1  # of causal models, where none is set
DRAWING = ("temperature", "top_p", "min_p", "seed")
DENOISING = ("order", "steps", "block_length", "guidance_scale")
COMPLETING = ("max_new_tokens", "repetition_penalty", "stop", "log_probabilities")
ALL = ("chat", "trace", "top_k", *DRAWING, *DENOISING, *COMPLETING)


def generate(config: GenerateConfig) -> None:
    """Print what the model makes of the prompt; raises ConfigError for a setting that means nothing for it."""
    path = loading.chosen_model(config.checkpoint, config.paths)
    language_model = LanguageModel.load(path, config.device, config.dtype, weights=config.weights)
    if language_model.labels or language_model.regressor is not None:
        _refuse(config, ALL, "for a model that classifies texts or predicts a number of one", "take its base model")
        _print_labels(config, language_model)
    elif config.chat:
        _refuse(config, ("prompt", "trace", "log_probabilities"), "in a conversation", "leave chat=true out")
        _converse(config, language_model)
    else:
        mask_id = language_model.tokenizer.mask_id  # which the tokenizer may spell in its own way
        fills = "[MASK]" in config.prompt or not language_model.completes
        fills = fills or (mask_id is not None and mask_id in language_model.prompt_ids(config.prompt))
        denoising = _changed(config, DENOISING)
        if fills:
            advice = "take [MASK] out of the prompt" if language_model.completes else "take a causal model"
            _refuse(config, COMPLETING, "where masks are filled: the text keeps its length", advice)
        if fills and not (language_model.denoises or denoising or config.trace != "false"):
            _refuse(config, DRAWING, "where predictions are listed: nothing is drawn", "fill the masks: order=random")
            _print_predictions(config, language_model)
            return
        with _traced(config, language_model, fills) as on_step:
            _write_text(config, language_model, fills, denoising | on_step)


def _changed(config: GenerateConfig, names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of these names that are not the default."""
    usual = GenerateConfig()
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(usual, name)}


def _refuse(config: GenerateConfig, names: Sequence[str], where: str, advice: str) -> None:
    """Raise ConfigError for the first of the settings that is not the default: it means nothing here."""
    for name, value in _changed(config, names).items():
        raise ConfigError(f"{name}={shown(value)} means nothing {where}. Leave {name} out, or {advice}.")


def _print_labels(config: GenerateConfig, language_model: LanguageModel) -> None:
    """Print the probability of each label of the prompt, or its number."""
    if language_model.regressor is not None:
        print(printable(f"  {language_model.regress(config.prompt):.4f}"))
        return
    for label, probability in language_model.classify(config.prompt).items():
        print(printable(f"  {probability:6.1%}  {label}", one_line=True))


def _print_predictions(config: GenerateConfig, language_model: LanguageModel) -> None:
    """Print the most likely tokens for each mask of the prompt."""
    for number, predictions in enumerate(language_model.predict_mask(config.prompt, config.top_k or 5), start=1):
        print(printable(f"mask {number}"))
        for prediction in predictions:
            token = printable(prediction.token.strip() or repr(prediction.token), one_line=True)
            line = f"  {prediction.probability:6.1%}  {token:<16}  {prediction.text}"
            print(printable(line, one_line=True))


def _converse(config: GenerateConfig, language_model: LanguageModel) -> None:
    """Print the model's answer to each line of standard input, until that ends."""
    options = _completing(config, language_model) | _changed(config, DENOISING)
    mark = "> " if sys.stdin.isatty() else ""
    print(printable(mark), end="", file=sys.stderr, flush=True)
    for number, line in enumerate(sys.stdin):
        if text := line.strip():
            answer = language_model.chat(text, **options | {"seed": config.seed + number})
            print(printable(answer), flush=True)
        print(printable(mark), end="", file=sys.stderr, flush=True)


def _sampling(config: GenerateConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("top_k", *DRAWING)}


def _completing(config: GenerateConfig, language_model: LanguageModel) -> dict[str, Any]:
    """Return the options of a completion, without those of diffusion."""
    options = _sampling(config) | {
        "max_new_tokens": config.max_new_tokens, "stop": [read_escapes(text) for text in config.stop]
    }  # fmt: skip
    if config.repetition_penalty is not None:
        options["repetition_penalty"] = config.repetition_penalty
    elif language_model.causal:
        options["repetition_penalty"] = REPETITION_PENALTY
    return options


@contextmanager
def _traced(config: GenerateConfig, language_model: LanguageModel, fills: bool) -> Iterator[dict[str, Any]]:
    """Give the option that shows the steps, if any; write the animation at the end."""
    if config.trace == "false":
        yield {}
        return
    if language_model.causal and not fills:
        raise ConfigError(
            f"trace={config.trace} means nothing for a causal model, which continues a text from left to right. "
            "Leave trace out, or take a diffusion model: objective=diffusion."
        )
    path = None if config.trace == "true" else Path(config.trace)
    if path is not None:
        check_writable("trace", path)
    trace = Trace(language_model.tokenizer, prints=path is None)
    yield {"on_step": trace}
    if path is not None:
        trace.write(path)
        print(printable(f"animation   {path}", one_line=True), file=sys.stderr)


def _write_text(config: GenerateConfig, language_model: LanguageModel, fills: bool, denoising: dict[str, Any]) -> None:
    """Print the filled text, the response, or the prompt with its completion."""
    if fills:
        print(printable(language_model.fill(config.prompt, **_sampling(config), **denoising)))
        return
    options = _completing(config, language_model) | denoising
    responds = language_model.prompt_template is not None
    if config.log_probabilities:
        prompt = language_model.response_ids(config.prompt) if responds else config.prompt
        (completion,) = language_model.complete([prompt], strip=responds, **options)
        print(printable(completion.text.strip() if responds else config.prompt + completion.text))
        _print_log_probabilities(language_model, completion)
        return
    if responds or config.trace == "true":  # the lines of the trace come first
        method = language_model.respond if responds else language_model.generate
        print(printable(method(config.prompt, **options)))
        return
    pieces = language_model.stream(config.prompt, **options)  # a refused prompt raises before it is printed
    print(printable(config.prompt), end="", flush=True)
    for piece in pieces:
        print(printable(piece), end="", flush=True)
    print()


def _print_log_probabilities(language_model: LanguageModel, completion: Completion) -> None:
    """Print a line for each token of a completion: its log-probability in nats, and the token."""
    for token_id, value in zip(completion.tokens, completion.log_probabilities, strict=True):
        print(printable(f"  {value:8.4f}  {language_model.tokenizer.token(token_id)!r}"))
