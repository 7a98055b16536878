"""The length of a run that no setting gives: 20 tokens a parameter, at most four epochs."""

from dataclasses import replace

from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.prepare import Prepared
from pretrain.interop.load import build_without_weights
from pretrain.planning.scaling import MAX_USEFUL_EPOCHS, TOKENS_PER_PARAMETER

CHINCHILLA = "Hoffmann et al. 2022"
REPEATED = "Muennighoff et al. 2023"


def tokens_of(prepared: Prepared) -> int | None:
    """Return the tokens of the training text; None for a stream, whose length is unknown."""
    return sum(store.n_tokens for store in prepared.train.values()) if prepared.train else None


def steps_of_text(tokens: int | None, sizes: BatchSizes) -> int | None:
    """Return the steps that read the text at most four times, at least one; None for text of unknown length."""
    return None if tokens is None else max(1, sizes.steps_within(int(MAX_USEFUL_EPOCHS * tokens)))


def resolve_length(config: RunConfig, prepared: Prepared) -> tuple[RunConfig, str]:
    """Return the settings with a number of steps instead of `trainer.max_steps=null`, and one line that says why."""
    model = build_without_weights(config.model, config.objective, prepared.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps, line = length_by_rule(config, parameters, tokens_of(prepared))
    return replace(config, trainer=replace(config.trainer, max_steps=steps)), line


def length_by_rule(config: RunConfig, parameters: int, tokens: int | None) -> tuple[int, str]:
    """Return the steps of a run without a typed length, and one line that says why; `tokens` as `tokens_of`.

    The run reads 20 tokens for each parameter (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556), but the text at
    most four times (Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264). Other settings may still end it sooner.
    """
    sizes, wanted = config.batch_sizes(), TOKENS_PER_PARAMETER * parameters
    nearest = sizes.steps_within(round(wanted + config.tokens_per_step() / 2))
    steps, by_text = max(1, nearest), steps_of_text(tokens, sizes)
    passes = f"{MAX_USEFUL_EPOCHS:.0f} passes over the {tokens or 0:,} tokens of text ({REPEATED})"
    why = f"{TOKENS_PER_PARAMETER:.0f} tokens for each of {parameters:,} parameters ({CHINCHILLA}) are {wanted:,.0f}"
    if by_text is not None and by_text < steps:
        steps, why = by_text, f"{passes}; {why}, which would be more"
    elif by_text is not None:
        why = f"{why}, fewer than {passes}"
    limit = config.trainer.max_time
    timed = "" if limit is None else f", or after {limit:g} minutes (trainer.max_time)"
    line = (
        f"the run ends at step {steps:,}{timed}: {why}. Another length: trainer.max_steps=..., trainer.max_epochs=..."
    )
    return steps, line
