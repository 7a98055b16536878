"""How large a model and how much text suit a budget of operations, by the fitted laws of loss.

L(N, D) = E + A / N^alpha + B / D^beta, in nats per token, for N parameters and D tokens, with C = 6 N D operations.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimum:
    """The best use of a budget of operations."""

    parameters: float
    tokens: float
    loss: float  # nats per token


@dataclass(frozen=True)
class ScalingLaw:
    """The five numbers of one fit."""

    name: str
    floor: float  # E
    of_parameters: float  # A
    of_tokens: float  # B
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats per token that the fit expects on its authors' data."""
        return self.floor + self.of_parameters / parameters**self.alpha + self.of_tokens / tokens**self.beta

    def optimum(self, flops: float) -> Optimum:
        """Return the parameters and tokens of least loss with 6 N D = `flops`, in closed form.

        Source: Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, equation 4.
        """
        both = self.alpha + self.beta
        balance = (self.alpha * self.of_parameters / (self.beta * self.of_tokens)) ** (1 / both)
        parameters = balance * (flops / 6) ** (self.beta / both)
        tokens = (flops / 6) ** (self.alpha / both) / balance
        return Optimum(parameters, tokens, self.loss(parameters, tokens))


HOFFMANN = ScalingLaw("Hoffmann et al. 2022, equation 10", 1.69, 406.4, 410.7, 0.34, 0.28)  # arxiv.org/abs/2203.15556
BESIROGLU = ScalingLaw("Besiroglu et al. 2024", 1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # arxiv.org/abs/2404.10102

TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, table 3, in round numbers


def twenty_per_parameter(flops: float) -> Optimum:
    """Return the size whose 20 tokens per parameter spend the budget, with the loss that the refit expects there."""
    parameters = (flops / (6 * TOKENS_PER_PARAMETER)) ** 0.5
    tokens = TOKENS_PER_PARAMETER * parameters
    return Optimum(parameters, tokens, BESIROGLU.loss(parameters, tokens))
