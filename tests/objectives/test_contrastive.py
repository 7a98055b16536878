"""Texts of a pair are read alone, and InfoNCE is that of all texts of the batch, on one process and on two."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from folders import BYTES
from torch import Tensor, multiprocessing
from torch.testing import assert_close

from pretrain.data.collate import IGNORE, Rows
from pretrain.errors import ConfigError
from pretrain.models.transformer import Transformer
from pretrain.objectives.contrastive import Contrastive
from pretrain.objectives.fine_tuning_config import ContrastiveConfig, Pooling
from pretrain.objectives.objective import ModelWithLoss

TEXTS = [  # rows of pairs: anchor, positive, and hard negatives if there are any
    [["a fox", "the fox"], ["one", "1", "two"]],
    [["red", "the color red"], ["cut off"]],  # a pair whose positive does not fit has no target
    [["green", "a leaf", "a cat", "a dog"]],
    [["blue", "the sky"]],
]
WIDTH = 40


def ids(text: str) -> list[int]:
    return [int(token) for token in BYTES.encode_documents([text])[0]]


def rows(texts: list[list[list[str]]] = TEXTS) -> Rows:
    """Return packed rows as they are read from a store: a pair's texts are one document."""
    tokens = np.full((len(texts), WIDTH), BYTES.padding_id, np.int64)
    documents = np.full(tokens.shape, -1, np.int32)
    for row, pairs in enumerate(texts):
        flat = [token for pair in pairs for text in pair for token in ids(text)]
        numbers = [number for number, pair in enumerate(pairs) for text in pair for _ in ids(text)]
        tokens[row, : len(flat)], documents[row, : len(flat)] = flat, numbers
    return Rows(tokens, np.full_like(tokens, IGNORE), np.zeros_like(tokens), documents)


def model_of(causal: bool) -> Transformer:
    return random_model(shape("llama" if causal else "bert", context_length=64), BYTES.vocab_size, causal).eval()


def objective_of(pooling: Pooling, causal: bool = False, dimensions: tuple[int, ...] = (4,)) -> Contrastive:
    return Contrastive(causal, pooling, 0.1, dimensions, (BYTES.bos_id, BYTES.eos_id))


def vector(model: Transformer, text: str, pooling: Pooling) -> Tensor:
    hidden = model(torch.tensor([ids(text)]))[0]
    return {Pooling.mean: hidden.mean(0), Pooling.first: hidden[0], Pooling.last: hidden[-1]}[pooling]


def expected_losses(model: Transformer, pooling: Pooling, lengths: tuple[int | None, ...]) -> list[Tensor]:
    """Return the loss of each pair, one text at a time, as the definition has it."""
    pairs = [pair for row in TEXTS for pair in row if len(pair) > 1]
    candidates = [text for pair in pairs for text in pair[1:]]
    vectors = torch.stack([vector(model, text, pooling) for text in candidates])
    losses = []
    for anchor, positive, *_ in pairs:
        own, right = vector(model, anchor, pooling), candidates.index(positive)
        of_lengths = []
        for length in lengths:
            similarity = F.cosine_similarity(own[None, :length], vectors[:, :length])
            of_lengths.append(-F.log_softmax(similarity / 0.1, 0)[right])
        losses.append(torch.stack(of_lengths).mean())
    return losses


@pytest.mark.parametrize(
    ("causal", "pooling"), [(False, Pooling.mean), (False, Pooling.first), (True, Pooling.last), (False, Pooling.last)]
)
def test_the_loss_is_that_of_texts_read_one_by_one(causal: bool, pooling: Pooling) -> None:
    model, objective = model_of(causal), objective_of(pooling, causal)
    batch = objective.collate(rows(), torch.arange(len(TEXTS)))
    loss, count = ModelWithLoss(model, objective)(batch)
    expected = torch.stack(expected_losses(model, pooling, (4, None)))
    assert count == len(expected) == 5
    assert_close(loss, expected.sum(), atol=1e-4, rtol=1e-4)
    losses, nearest = ModelWithLoss(model, objective).evaluate(batch)
    assert_close(losses[batch.targets != IGNORE], expected.detach(), atol=1e-4, rtol=1e-4)
    assert set(nearest.unique().tolist()) <= {-1, 1, 3}


def test_an_excluded_row_gives_no_negatives() -> None:
    model, objective = model_of(False), objective_of(Pooling.mean)
    batch = objective.collate(rows([*TEXTS, TEXTS[0]]), torch.arange(len(TEXTS) + 1))
    batch.targets[-1] = IGNORE
    alone = objective.collate(rows(), torch.arange(len(TEXTS)))
    with_loss = ModelWithLoss(model, objective)
    assert_close(with_loss(batch)[0], with_loss(alone)[0])
    batch.targets[:] = IGNORE
    loss, count = with_loss(batch)
    assert loss == 0
    assert count == 0
    loss.backward()


def _work(rank: int, store: Path, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, objective = model_of(False), objective_of(Pooling.mean)
    own = rows()[np.arange(3) if rank == 0 else np.array([3])]  # not equally many texts
    loss, _ = ModelWithLoss(model, objective)(objective.collate(own, torch.arange(len(own.tokens))))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.distributed.all_reduce(gradient)
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    if rank == 0:
        answers.put((total.tolist(), gradient.tolist()))
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_two_processes_compare_all_texts_as_one_does(tmp_path: Path) -> None:
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    context = multiprocessing.spawn(_work, (tmp_path / "store", answers), nprocs=2, join=False)
    total, gradient = answers.get()
    context.join()
    model, objective = model_of(False), objective_of(Pooling.mean)
    loss, _ = ModelWithLoss(model, objective)(objective.collate(rows(), torch.arange(len(TEXTS))))
    loss.backward()
    one = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_close(torch.tensor(total), loss.detach(), atol=1e-5, rtol=1e-5)
    assert_close(torch.tensor(gradient), one, atol=1e-5, rtol=1e-4)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.pooling=first takes a position that attends to nothing"):
        ContrastiveConfig(left_to_right=True, pooling=Pooling.first)
    for wrong in ([0], [8, 8]):
        with pytest.raises(ConfigError, match=r"objective\.dimensions=\[.*must be different numbers from 1"):
            ContrastiveConfig(dimensions=wrong)
    with pytest.raises(ConfigError, match=r"objective\.temperature=0"):
        ContrastiveConfig(temperature=0.0)
