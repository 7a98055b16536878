"""The options of generate() and fill(), checked and turned into what the samplers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any

from pretrain.config.setting import check, description
from pretrain.errors import ConfigError, nearest, shown
from pretrain.inference.config import DecodingOrder, GenerateConfig
from pretrain.inference.sampling import Sampling
from pretrain.program import command

SAMPLING = {field.name for field in fields(Sampling)}
MAX_NEW_TOKENS = 100  # where max_new_tokens is left out
CAUSAL_ONLY = ("repetition_penalty", "use_cache")
DIFFUSION_ONLY = ("order", "steps", "block_length", "guidance_scale", "on_step")


def check_options(method: str, kind: Any, options: Mapping[str, Any], causal: bool) -> None:
    """Raise ConfigError for an option that the method does not have, or that means nothing for the model."""
    for name, value in options.items():
        if name not in kind.__annotations__:
            raise ConfigError(f"{name} is not an option of {method}(). {nearest(name, kind.__annotations__)}")
        if method != "generate" or value is None:
            continue
        if not causal and name in CAUSAL_ONLY:
            raise ConfigError(
                f"{name}={shown(value)} means nothing for a diffusion model, which fills masks in any order. "
                f"Leave {name} out, or take a causal model: objective=causal."
            )
        if causal and name in DIFFUSION_ONLY:
            raise ConfigError(
                f"{name}={shown(value)} means nothing for a causal model, which continues a text from left to "
                f"right. Leave {name} out, or take a diffusion model: objective=diffusion."
            )


def no_template(others: Sequence[tuple[str, str]]) -> ConfigError:
    """Return the error of respond() for a model without one template; `others` are several that it was trained with."""
    if others:
        shown_ones = " and ".join(repr("{prompt}".join(each)) for each in others)
        return ConfigError(
            f"this model was fine-tuned on pairs in several templates, {shown_ones}, so that respond() has none. "
            "Write the prompt in one of them, and use generate()."
        )
    return ConfigError(
        "this model was not fine-tuned on pairs of prompt and response: use generate(), or chat() for one of "
        f"conversations. Or fine-tune it: {command('train')} experiment=instruct init_from=<this model> "
        "data.path=<pairs.jsonl>."
    )


def listed(prompts: Sequence[str | list[int]]) -> list[str | list[int]]:
    """Return the prompts of complete() in a list; raises ConfigError for one text or the ids of one."""
    if isinstance(prompts, str) or any(isinstance(prompt, Integral) for prompt in prompts):
        kind = "text" if isinstance(prompts, str) else "list of ids"
        raise ConfigError(f"complete() takes a list of prompts, and this is one {kind}. Try complete([prompt]).")
    return list(prompts)


def check_prompts(rows: Sequence[Sequence[Any]], vocab_size: int, causal: bool) -> None:
    """Raise ConfigError for no prompts, for ids that are none of the vocabulary, and for one of a causal model without.

    A diffusion model can write into an empty text, where it predicts a mask from the mask itself.
    """
    if not rows:
        raise ConfigError("generate() needs at least one prompt, and the list is empty.")
    for row in rows:
        if causal and not len(row):
            raise ConfigError(
                "a prompt has no ids, and a causal model continues at least one. Try the empty text '', or the id that "
                "begins a document: [tokenizer.bos_id]."
            )
        wrong = [token for token in row if not (isinstance(token, Integral) and 0 <= int(token) < vocab_size)]
        if wrong:
            raise ConfigError(
                f"a prompt has the id {wrong[0]!r}, and the ids of the model's vocabulary are whole numbers from 0 to "
                f"{vocab_size - 1}. Try prompt_ids('The')."
            )


def new_token_limits(
    lengths: Sequence[int], max_new_tokens: int | None, context_length: int, causal: bool
) -> list[int]:
    """Return the most new tokens of prompts with these lengths, where `max_new_tokens` is none as many as fit.

    They are 100 at most. Prompts of a causal model grow together, so all have the room of the longest. Raises
    ConfigError for a limit that is no whole number from 1.
    """
    check("max_new_tokens", max_new_tokens, description(GenerateConfig, "max_new_tokens"))
    if max_new_tokens is not None:
        return [max_new_tokens] * len(lengths)
    rooms = [min(MAX_NEW_TOKENS, max(1, context_length - length)) for length in lengths]
    return [min(rooms)] * len(rooms) if causal else rooms


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Return how tokens are drawn, from the options that say so."""
    return Sampling(**{name: value for name, value in options.items() if name in SAMPLING})


def denoising_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that only diffusion models have and that are set, as fields of `Denoising`."""
    chosen = {name: options[name] for name in DIFFUSION_ONLY if options.get(name) is not None}
    if "order" in chosen:
        chosen["order"] = _order(chosen["order"])
    return chosen


def _order(order: DecodingOrder | str) -> DecodingOrder:
    """Return the order of this name; raises ConfigError for another name."""
    names = [known.value for known in DecodingOrder]
    name = order.value if isinstance(order, DecodingOrder) else order
    if name not in names:
        raise ConfigError(f"order={shown(name)} is none of {', '.join(names)}. Try order=random.")
    return DecodingOrder(name)
