"""Scaling laws: compute-optimal parameters and tokens, and warnings about repeated or scarce data.

L(N, D) = E + A / N^alpha + B / D^beta, in nats per token, for N parameters and D tokens, with C = 6 N D FLOPs.
"""

import math
from dataclasses import dataclass

# up to about four epochs, repeated tokens are worth almost as much as new ones
# (Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264)
MAX_USEFUL_EPOCHS = 4.0
TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, table 3, in round numbers
_REPEATED = f"Beyond about {MAX_USEFUL_EPOCHS:.0f} epochs repeated tokens add little (Muennighoff et al. 2023)."


MIN_PASSES = 0.5  # below it, and below 20 tokens a parameter, most of a text is left that the model could still use


def data_warnings(parameters: int, tokens_in_data: int, tokens_planned: int) -> list[str]:
    """Return warnings if the data is repeated too often, scarce for the model, or for the most part never read.

    `tokens_planned` is 0 for a run whose length is not known.
    """
    warnings = []
    epochs = tokens_planned / max(1, tokens_in_data)
    if epochs > MAX_USEFUL_EPOCHS:
        warnings.append(
            f"the run reads {tokens_planned:,} tokens, the data has {tokens_in_data:,}: {epochs:.1f} epochs. "
            f"{_REPEATED}"
        )
    if 0 < epochs < MIN_PASSES and tokens_planned < TOKENS_PER_PARAMETER * parameters:
        warnings.append(
            f"the run reads {tokens_planned:,} tokens: {epochs:.1%} of one pass over the data's {tokens_in_data:,}, "
            f"and {tokens_planned / parameters:.2g} for each parameter, of which about {TOKENS_PER_PARAMETER:.0f} are "
            "compute-optimal (Hoffmann et al. 2022). To read all of the text, type trainer.max_epochs=1 without "
            f"trainer.max_steps, or trainer.max_tokens={tokens_in_data} for a mixture, a stream or a run with stages; "
            "for that rule: trainer.max_steps=null."
        )
    if parameters > tokens_in_data:
        warnings.append(
            f"the model has {parameters:,} parameters, the data {tokens_in_data:,} tokens, which it can memorize. "
            "Watch val/loss, take more data, or a smaller model."
        )
    return warnings


def source_warnings(epochs: dict[str, float], tokens_in_data: dict[str, int]) -> list[str]:
    """Return a warning for each source of a mixture with more than about four epochs."""
    return [
        f"source {name} would be read {times:.1f} epochs: it has {tokens_in_data[name]:,} tokens. {_REPEATED}"
        for name, times in epochs.items()
        if times > MAX_USEFUL_EPOCHS
    ]


@dataclass(frozen=True)
class Optimum:
    """Compute-optimal parameters and tokens, and the loss there."""

    parameters: float
    tokens: float
    loss: float  # nats per token


@dataclass(frozen=True)
class ScalingLaw:
    """The five constants of one fit."""

    name: str
    floor: float  # E
    of_parameters: float  # A
    of_tokens: float  # B
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats per token that the fit predicts on its authors' data."""
        return self.floor + self.of_parameters / parameters**self.alpha + self.of_tokens / tokens**self.beta

    def optimum(self, flops: float) -> Optimum:
        """Return the parameters and tokens that minimize the loss at 6 N D = `flops`, in closed form.

        Source: Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, equation 4.
        """
        both, log_product = self.alpha + self.beta, math.log(flops / 6)
        slopes = math.log(self.alpha) + math.log(self.of_parameters) - math.log(self.beta) - math.log(self.of_tokens)
        # a law that hardly depends on one of both has its optimum beyond all numbers: it ends at one parameter or token
        log_parameters = min(max((slopes + self.beta * log_product) / both, 0.0), max(log_product, 0.0))
        parameters, tokens = math.exp(log_parameters), math.exp(log_product - log_parameters)
        return Optimum(parameters, tokens, self.loss(parameters, tokens))


LEAST_FITTED_FLOPS = 6e18  # the smallest IsoFLOP profile of Hoffmann et al. 2022, section 3.2

HOFFMANN = ScalingLaw("Hoffmann et al. 2022, equation 10", 1.69, 406.4, 410.7, 0.34, 0.28)  # arxiv.org/abs/2203.15556
BESIROGLU = ScalingLaw("Besiroglu et al. 2024", 1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # arxiv.org/abs/2404.10102


def twenty_per_parameter(flops: float) -> Optimum:
    """Return the size with 20 tokens per parameter at this budget, and the refit's loss there."""
    parameters = (flops / (6 * TOKENS_PER_PARAMETER)) ** 0.5
    tokens = TOKENS_PER_PARAMETER * parameters
    return Optimum(parameters, tokens, BESIROGLU.loss(parameters, tokens))
