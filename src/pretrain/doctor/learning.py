"""Whether the small model is the one that its settings describe, and learns."""

import math
from dataclasses import replace

import torch

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.interop.load import build_without_weights
from pretrain.models.config import TransformerConfig
from pretrain.models.size import parameter_count
from pretrain.models.transformer import Transformer
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.groups import parameters_by_name

NEAR_CHANCE = 0.1  # of ln(vocabulary): an untrained model's loss may be so far from it
LEARNING_RATE = 0.01  # of small models: that of a large one would need more steps
OVERFIT_STEPS = 60
OVERFIT_ROWS = 4
OVERFIT_SHARE = 0.5  # of the first loss, below which the last one must be


def tied_weights(context: Context) -> CheckResult:
    """A tied head reads the embedding's own memory before and after a step, and an untied one has its own."""
    model = context.model()
    before = model.embeddings.tokens.weight.detach().clone()
    shared = [_shares(model)]
    model_with_loss = ModelWithLoss(model, context.objective).train()
    optimizer = replace(context.small.optimizer, learning_rate=LEARNING_RATE).build(model)
    loss, count = model_with_loss(context.batch(OVERFIT_ROWS))
    (loss / count).backward()
    optimizer.step()
    shared.append(_shares(model))
    moved = float((model.embeddings.tokens.weight.detach() - before).abs().max())
    states = ["shared" if is_shared else "separate" for is_shared in shared]
    wanted = context.shape.tie_embeddings
    return CheckResult(
        shared == [wanted, wanted] and moved > 0 and _alike(model) == wanted,
        f"model.tie_embeddings={str(wanted).lower()}: memory of head and embedding {states[0]} before a step, "
        f"{states[1]} after; "
        f"the embedding moved by {moved:.1e}",
    )


def parameters_counted(context: Context) -> CheckResult:
    """The formula that plans and reports rest on counts what the models have, at small and at full size."""
    tokenizer = context.prepared.tokenizer
    found = []
    for config in (context.config, context.small):
        counted, by_formula = _counts(config, tokenizer)
        found.append((counted, by_formula))
    (full, full_formula), (small, small_formula) = found
    return CheckResult(
        full == full_formula and small == small_formula,
        f"{full:,} counted and {full_formula:,} by the formula at full size, {small:,} and {small_formula:,} small",
    )


@torch.no_grad()
def initial_loss(context: Context) -> CheckResult:
    """Before the first step the model finds every token about as likely as any other."""
    model = context.model()
    loss, count = ModelWithLoss(model, context.objective).eval()(context.batch(OVERFIT_ROWS))
    mean, chance = float(loss / count), math.log(model.vocab_size)
    return CheckResult(
        abs(mean - chance) <= NEAR_CHANCE * chance,
        f"{mean:.4f} nats a target, ln({model.vocab_size:,}) = {chance:.4f}",
    )


def overfits(context: Context) -> CheckResult:
    """Shown the same rows again and again, the small model learns them."""
    model = context.model()
    model_with_loss = ModelWithLoss(model, context.objective).train()
    optimizer = replace(context.small.optimizer, learning_rate=LEARNING_RATE).build(model)
    batch, losses = context.batch(OVERFIT_ROWS), []
    for _ in range(OVERFIT_STEPS):
        loss, count = model_with_loss(batch)
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach() / count))
    return CheckResult(
        losses[-1] < OVERFIT_SHARE * losses[0],  # false for a loss that is no number
        f"the loss of {OVERFIT_ROWS} rows fell from {losses[0]:.2f} to {losses[-1]:.2f} nats in {OVERFIT_STEPS} steps",
    )


def _shares(model: Transformer) -> bool:
    return model.head.weight.data_ptr() == model.embeddings.tokens.weight.data_ptr()


def _alike(model: Transformer) -> bool:
    """Whether head and embedding are one parameter, which the optimizer has once."""
    return len(parameters_by_name(model)) == len(dict(model.named_parameters(remove_duplicate=False))) - 1


def _counts(config: RunConfig, tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the parameters of the model that the settings describe: as built, without memory, and by the formula."""
    shape = config.model
    if not isinstance(shape, TransformerConfig):
        raise NotApplicableError(f"model.kind={shape.kind} has no formula")
    model = build_without_weights(shape, config.objective, tokenizer)
    counted = sum(parameter.numel() for parameter in model.parameters())
    return counted, parameter_count(shape, shape.vocabulary(tokenizer.vocab_size))
