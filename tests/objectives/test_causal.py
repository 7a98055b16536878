"""Each token predicts the next token of its document, and nothing else."""

import numpy as np
import pytest
import torch
from families import random_model, shape
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from pretrain.data.collate import IGNORE, Rows
from pretrain.objectives.config import CausalConfig, ObjectiveConfig
from pretrain.objectives.objective import ModelWithLoss


class NoVocabulary:
    vocab_size = 50
    mask_id = None
    special_ids: frozenset[int] = frozenset()


def packed() -> Rows:
    """One row of two documents (5 and 3 tokens) and two positions of padding."""
    tokens = np.array([[7, 8, 9, 10, 11, 20, 21, 22, 0, 0]])
    following = np.array([[8, 9, 10, 11, IGNORE, 21, 22, IGNORE, IGNORE, IGNORE]])
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])
    documents = np.array([[0, 0, 0, 0, 0, 1, 1, 1, -1, -1]], np.int32)
    return Rows(tokens, following, positions, documents)


def test_targets_are_the_tokens_that_follow() -> None:
    config = CausalConfig()
    objective = config.build(NoVocabulary(), seed=0)
    assert config.causal
    assert objective.causal
    rows = packed()
    batch = objective.collate(rows, torch.tensor([3]))
    assert_array_equal(batch.tokens, rows.tokens)
    assert_array_equal(batch.targets, rows.next_tokens)
    assert_array_equal(batch.positions, rows.positions)
    assert batch.documents is not None
    assert_array_equal(batch.documents, rows.documents)
    assert batch.target_positions is None
    assert batch.sample_indices.tolist() == [3]


@pytest.mark.parametrize(("last", "passed"), [(0, False), (-1, False), (1, True)])
def test_documents_are_passed_only_if_causal_attention_crosses_them(last: int, passed: bool) -> None:
    documents = np.zeros((2, 6), np.int32)
    documents[1, 4:] = last  # padding stands at the end, where a causal model does not look
    rows = Rows(np.ones((2, 6), np.int64), np.ones((2, 6), np.int64), np.ones((2, 6), np.int64), documents)
    batch = CausalConfig().build(NoVocabulary(), seed=0).collate(rows, torch.arange(2))
    assert (batch.documents is not None) is passed


def test_the_loss_of_a_packed_row_is_that_of_its_documents() -> None:
    objective = CausalConfig().build(NoVocabulary(), seed=0)
    model = random_model(shape("gpt"), 50, causal=True)
    total, count = ModelWithLoss(model, objective)(objective.collate(packed(), torch.tensor([0])))
    alone = torch.zeros(())
    for document in ([7, 8, 9, 10, 11], [20, 21, 22]):
        tokens = torch.tensor([document])
        scores = model.head(model(tokens))[0].log_softmax(-1)
        alone -= scores[torch.arange(len(document) - 1), tokens[0, 1:]].sum()
    assert int(count) == 6
    assert_close(total, alone, rtol=1e-5, atol=1e-5)


def test_an_objective_of_no_kind_says_what_it_lacks() -> None:
    with pytest.raises(TypeError, match=r"objective '\?' has no `causal`"):
        assert ObjectiveConfig().causal
    with pytest.raises(TypeError, match=r"objective '\?' has no create\(\)"):
        ObjectiveConfig().build(NoVocabulary(), seed=0)
