"""The length of a run that no setting gives: 20 tokens a parameter, at most four epochs."""

from dataclasses import dataclass, replace

from pretrain.config.run import RunConfig
from pretrain.data.mixture import MixtureDataset
from pretrain.data.prepare import Prepared, training_rows
from pretrain.interop.load import build_without_weights
from pretrain.planning.scaling import MAX_USEFUL_EPOCHS, TOKENS_PER_PARAMETER

CHINCHILLA = "Hoffmann et al. 2022"
REPEATED = "Muennighoff et al. 2023"


@dataclass(frozen=True)
class Corpus:
    """The training text as rows of a run's length."""

    rows: int | None  # of one pass; None: a stream, whose length is unknown
    tokens: int  # without padding; of a stream, those so far

    def steps(self, epochs: float, batch_size: int) -> int | None:
        """Return the steps that read this many passes, the last one included; None for a stream."""
        return None if self.rows is None else max(1, -int(-epochs * self.rows // batch_size))


def corpus_of(config: RunConfig, prepared: Prepared) -> Corpus:
    """Return the training text of a run. Raises DataError if a source has no rows."""
    stream = training_rows(prepared, config.data, config.model.context_length, config.seed)
    rows = sum(map(len, stream.streams.values())) if isinstance(stream, MixtureDataset) else None
    return Corpus(rows, sum(stream.tokens().values()))


def resolve_length(config: RunConfig, prepared: Prepared) -> tuple[RunConfig, str]:
    """Return the settings with a number of steps in place of `trainer.max_steps=null`, and one line that says why.

    The run reads 20 tokens for each parameter (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556), but each row at
    most four times (Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264). Other settings may still end it sooner.
    """
    model = build_without_weights(config.model, config.objective, prepared.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    corpus, per_step = corpus_of(config, prepared), config.tokens_per_step()
    wanted = TOKENS_PER_PARAMETER * parameters
    steps = max(1, round(wanted / per_step))
    by_text = corpus.steps(MAX_USEFUL_EPOCHS, config.batch_size)
    passes = f"{MAX_USEFUL_EPOCHS:.0f} passes over the {corpus.tokens:,} tokens of text ({REPEATED})"
    rule = f"{TOKENS_PER_PARAMETER:.0f} tokens for each of {parameters:,} parameters ({CHINCHILLA}) are {wanted:,.0f}"
    if by_text is None:
        why = rule
    elif by_text < steps:
        steps, why = by_text, f"{passes}; {rule}, which would be more"
    else:
        why = f"{rule}, fewer than {passes}"
    limit = config.trainer.max_time
    timed = "" if limit is None else f", or after {limit:g} minutes (trainer.max_time)"
    line = (
        f"the run ends at step {steps:,}{timed}: {why}. Another length: trainer.max_steps=..., trainer.max_epochs=..."
    )
    return replace(config, trainer=replace(config.trainer, max_steps=steps)), line
