"""Time the head of a masked model, from hidden states to gradients: `python benchmarks/masked_head.py`.

BERT base's head over 30,522 tokens, for 16 rows of 128 tokens of which 15 % are predicted. Ours computes logits at the
masked positions only; the same head over all positions, with the others ignored, shows the savings. The peer is the
head of transformers' BERT with its model's loss, over all positions and with the same weights. The losses must agree.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from baselines import our_learner
from comparison import Result, take_turns, typed, why
from shapes import SHAPES, Shape
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss

MEASURES = ("src/pretrain/objectives", "src/pretrain/models", "src/pretrain/kernels")

MASKED = 0.15
Loss = Callable[[Tensor], Tensor]  # from hidden states (B, T, d_model) to the mean loss over the targets


def ours(model_with_loss: ModelWithLoss, batch: Batch) -> Loss:
    """Return the function of our loss on a batch."""

    def loss(hidden: Tensor) -> Tensor:
        total, count = model_with_loss.objective(hidden, model_with_loss.model.head, batch)
        mean: Tensor = total / count
        return mean

    return loss


def at_all_positions(batch: Batch) -> Batch:
    """Return the batch with a target for each position, IGNORE where nothing is masked."""
    assert batch.target_positions is not None
    none = torch.full_like(batch.tokens, IGNORE)  # below any target: unused entries of target_positions are 0
    targets = none.scatter_reduce(1, batch.target_positions, batch.targets, "amax")
    return replace(batch, targets=targets, target_positions=None)


def theirs(model_with_loss: ModelWithLoss, batch: Batch, shape: Shape) -> Loss:
    """Return the function of transformers' loss with our weights."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertOnlyMLMHead

    head, own = (
        BertOnlyMLMHead(BertConfig(vocab_size=shape.vocab_size, hidden_size=shape.d_model)),
        model_with_loss.model.head,
    )
    predictions = head.predictions
    predictions.transform.dense.load_state_dict(own.dense.state_dict())
    predictions.transform.LayerNorm.load_state_dict(own.norm.state_dict())
    predictions.decoder.load_state_dict({"weight": own.weight.detach(), "bias": own.bias.detach()})
    targets = at_all_positions(batch).targets.flatten()
    return lambda hidden: F.cross_entropy(head(hidden).flatten(0, 1), targets)


def measure(shape: Shape, rounds: int, folder: Path) -> Result:
    """Return the result for a shape."""
    model_with_loss, batches = our_learner(shape, folder)
    model_with_loss.objective.config = replace(model_with_loss.objective.config, mask_probability=MASKED)
    batch = next(batches)
    torch.manual_seed(0)
    hidden = torch.randn(shape.rows, shape.length, shape.d_model, requires_grad=True)
    losses = {
        "ours": ours(model_with_loss, batch),
        "ours, at all positions": ours(model_with_loss, at_all_positions(batch)),
    }
    settings = {"rows": shape.rows, "length": shape.length, "vocabulary": shape.vocab_size, "masked": MASKED}
    result = Result("masked_head", typed(), settings | {"rounds": rounds})
    try:
        losses["transformers"] = theirs(model_with_loss, batch, shape)
    except Exception as error:  # any failure of the peer is recorded; ours is still measured
        result.missing["transformers"] = why(error)
    found = {}

    def speed(name: str) -> float:
        return shape.tokens / _seconds(losses[name], hidden, found, name)

    turns = {name: (lambda name=name: speed(name)) for name in losses}
    figures = take_turns(turns, rounds, missing=result.missing)
    result.add("masked head, forward and back", "tokens/s", figures, more_is_better=True)
    spread = max(found.values()) - min(found.values())
    result.figures["losses"] = found
    if not math.isclose(spread, 0, abs_tol=1e-3):
        raise RuntimeError(f"The heads do not compute the same: {found}.")
    return result


def _seconds(loss: Loss, hidden: Tensor, found: dict[str, float], name: str) -> float:
    """Return a function that times the loss and its gradients of hidden states and weights."""
    hidden.grad = None
    start = time.perf_counter()
    value = loss(hidden)
    value.backward()
    seconds = time.perf_counter() - start
    found[name] = float(value.detach())
    return seconds


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--quick", action="store_true", help="a head with d_model 384 over 4,096 tokens, 5 rounds, not saved"
    )
    given = parser.parse_args()
    shape = SHAPES["bert_12m" if given.quick else "bert_110m"]
    with tempfile.TemporaryDirectory() as folder:
        measure(shape, 5 if given.quick else given.rounds, Path(folder)).finish(keep=not given.quick)


if __name__ == "__main__":
    main()
