"""The label of a document is predicted from that document alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from folders import BYTES
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from pretrain.data.collate import IGNORE, Rows
from pretrain.errors import ConfigError
from pretrain.inference.classification import label_probabilities
from pretrain.models.transformer import LabelHead, Transformer
from pretrain.objectives.classify import Classify
from pretrain.objectives.fine_tuning_config import ClassifyConfig, Pooling
from pretrain.objectives.objective import ModelWithLoss

WAYS = [
    (False, Pooling.mean),
    (False, Pooling.first),
    (False, Pooling.last),
    (True, Pooling.last),
    (True, Pooling.mean),
]


def packed() -> Rows:
    """Rows of two documents, of one, and of one that fills its row."""
    tokens = np.array([[7, 8, 9, 10, 20, 21, 0, 0], [30, 31, 32, 0, 0, 0, 0, 0], [40, 41, 42, 43, 44, 45, 46, 47]])
    documents = np.array([[0, 0, 0, 0, 1, 1, -1, -1], [0, 0, 0, *[-1] * 5], [0] * 8], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 0, 0], [0, 1, 2, *[0] * 5], list(range(8))])
    labels = np.array([[2, 2, 2, 2, 0, 0, IGNORE, IGNORE], [1, 1, 1, *[IGNORE] * 5], [2] * 8])
    return Rows(tokens, np.full_like(tokens, IGNORE), positions, documents, labels)


def classifier(causal: bool) -> Transformer:
    config = shape("llama", context_length=64)
    model = Transformer(config, BYTES.vocab_size, causal, n_labels=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def test_one_target_a_document_at_the_place_that_stands_for_it() -> None:
    last = Classify(True, Pooling.last, BYTES.eos_id).collate(packed(), torch.arange(3))
    assert_array_equal(last.targets, [[2, 0], [1, IGNORE], [2, IGNORE]])
    assert last.target_positions is not None
    assert_array_equal(last.target_positions, [[3, 5], [2, 0], [7, 0]])
    first = Classify(False, Pooling.first, BYTES.eos_id).collate(packed(), torch.arange(3))
    assert first.target_positions is not None
    assert_array_equal(first.target_positions, [[0, 4], [0, 0], [0, 0]])


@pytest.mark.parametrize(("causal", "pooling"), WAYS)
def test_a_document_in_a_packed_and_padded_row_is_classified_as_if_alone(causal: bool, pooling: Pooling) -> None:
    model, objective, rows = classifier(causal), Classify(causal, pooling, BYTES.eos_id), packed()
    model_with_loss = ModelWithLoss(model, objective)
    batch = objective.collate(rows, torch.arange(3))
    together = objective.log_probabilities(model(batch.tokens, batch.positions, batch.documents), model.head, batch)
    expected = []
    for row, number in ((0, 0), (0, 1), (1, 0), (2, 0)):
        at = rows.documents[row] == number
        tokens = torch.from_numpy(rows.tokens[row][at])[None]
        hidden = model(tokens)[0]
        pooled = hidden.mean(0) if pooling is Pooling.mean else hidden[0 if pooling is Pooling.first else -1]
        alone = (model.head.weight @ pooled + model.head.bias).log_softmax(-1)
        assert_close(together[row, number], alone, rtol=1e-4, atol=1e-5)
        expected.append(F.nll_loss(alone, torch.tensor(rows.labels[row][at][0])))  # type: ignore[index]
    loss, count = model_with_loss(batch)
    assert int(count) == 4
    assert_close(loss, torch.stack(expected).sum(), rtol=1e-4, atol=1e-5)
    losses, predictions = model_with_loss.evaluate(batch)
    assert_close(losses.sum(), loss.detach(), rtol=1e-5, atol=1e-6)
    assert_array_equal(predictions, together.argmax(-1))


@pytest.mark.parametrize("causal", [True, False])
def test_texts_read_in_batches_have_the_probabilities_of_each_alone(causal: bool) -> None:
    model, config = classifier(causal), ClassifyConfig(left_to_right=causal, labels=["a", "b", "c"])
    texts = ["short", "a text that is somewhat longer", "", "x" * 200]
    together = label_probabilities(model, config, BYTES, texts)
    alone = torch.cat([label_probabilities(model, config, BYTES, [text]) for text in texts])
    assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert_close(together.sum(1), torch.ones(4))
    cut = label_probabilities(model, config, BYTES, ["x" * 70])  # beyond the context nothing is read
    assert_close(cut[0], together[3])


def test_the_head_stands_where_that_of_the_vocabulary_would() -> None:
    model = shape("bert").build(50, causal=False, n_labels=3)
    assert isinstance(model.head, LabelHead)
    assert [name for name, _ in model.named_parameters() if name.startswith("head")] == ["head.weight", "head.bias"]
    model.tie()  # nothing to share
    assert model.head.weight.shape == (3, 32)
    assert model.head(torch.ones(2, 32)).shape == (2, 3)
    both = random_model(shape("bert"), 50, causal=False).named_parameters()
    base = {name: parameter.shape for name, parameter in both if not name.startswith("head")}
    ours = {name: parameter.shape for name, parameter in model.named_parameters() if not name.startswith("head")}
    assert ours == base


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.pooling=first .* Try objective\.pooling=last"):
        ClassifyConfig(left_to_right=True, pooling=Pooling.first)
    with pytest.raises(ConfigError, match=r"objective\.labels=\['a', 'a'\] names a label twice"):
        ClassifyConfig(labels=["a", "a"])


@pytest.mark.parametrize(("left_to_right", "pooling"), [(True, Pooling.last), (False, Pooling.mean)])
def test_what_stands_for_a_text_follows_from_how_it_is_read(left_to_right: bool, pooling: Pooling) -> None:
    config = ClassifyConfig(left_to_right=left_to_right, labels=["a", "b"])
    built = config.build(SimpleNamespace(eos_id=1), seed=0)  # type: ignore[arg-type]
    assert (built.causal, built.pooling, config.n_labels) == (left_to_right, pooling, 2)
    assert not config.fills_masks
