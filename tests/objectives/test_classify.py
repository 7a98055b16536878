"""The label of a document is predicted from that document alone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from folders import BYTES, lively_weights, write_theirs
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from pretrain.data.collate import IGNORE, Rows
from pretrain.errors import ConfigError
from pretrain.inference.classification import label_probabilities
from pretrain.interop.load import open_model
from pretrain.models.choices import ClassifierHead
from pretrain.models.interface import hidden_states
from pretrain.models.transformer import LabelHead, Transformer
from pretrain.objectives.classify import Classify, Regress, token_types
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


@pytest.mark.parametrize("head", [ClassifierHead.linear, ClassifierHead.score], ids=["with a bias", "without"])
def test_numbers_are_predicted_as_if_alone_and_the_loss_is_their_squared_error(head: ClassifierHead) -> None:
    settings = shape("llama", context_length=64, classifier_head=head)
    model, rows = settings.build(BYTES.vocab_size, causal=False, n_labels=1), packed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    numbers = np.where(rows.documents == 1, 4.5, rows.documents + 0.25).astype(np.float32)
    objective = Regress(False, Pooling.mean, BYTES.eos_id)
    batch = objective.collate(replace(rows, labels=None, numbers=numbers), torch.arange(3))
    assert_array_equal(batch.targets, [[0, 0], [0, IGNORE], [0, IGNORE]])
    assert_array_equal(batch.numbers, [[0.25, 4.5], [0.25, 0], [0.25, 0]])
    errors, predicted = ModelWithLoss(model.eval(), objective).evaluate(batch)
    for row, number in ((0, 0), (0, 1), (1, 0), (2, 0)):
        hidden = model(torch.from_numpy(rows.tokens[row][rows.documents[row] == number])[None])[0]
        alone = F.linear(hidden.mean(0), model.head.weight, model.head.bias)
        assert_close(predicted[row, number], alone[0], rtol=1e-4, atol=1e-5)
        assert batch.numbers is not None
        assert_close(errors[row, number], (alone[0] - batch.numbers[row, number]) ** 2, rtol=1e-3, atol=1e-5)
    loss, count = ModelWithLoss(model, objective)(batch)
    assert_close(loss, errors.sum())
    assert int(count) == 4
    assert errors[1, 1] == 0


def test_the_second_text_of_a_pair_has_a_type_of_its_own() -> None:
    tokens = np.array([[1, 7, 2, 8, 9, 2, 1, 7, 2, 1, 5, 2, 6, 2, 0]])
    documents = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, -1]])
    types = token_types(tokens, documents, eos_id=2)
    assert types is not None
    assert types.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0]]
    assert token_types(tokens[:, 6:9], documents[:, 6:9] - 1, eos_id=2) is None
    both = token_types(np.array([[2, 7, 2, 8, 2]]), np.zeros((1, 5), np.int32), eos_id=2)  # one token for BOS and EOS
    assert both is not None
    assert both.tolist() == [[0, 0, 0, 1, 1]]


def test_pairs_have_the_hidden_states_of_bert(tmp_path: Path) -> None:
    """transformers' tokenizer of BERT numbers the texts of a pair 0 and 1, the separator with the first."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=BYTES.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    theirs = lively_weights(BertModel(config))
    model = open_model(write_theirs(tmp_path / "bert", theirs)).load().eval()
    (ids,) = BYTES.encode_text_pairs([("a man", "one")])
    row = torch.from_numpy(ids.astype(np.int64))[None]
    types = torch.tensor([[0] * 7 + [1] * 4])
    ours = token_types(row.numpy(), np.zeros(row.shape, np.int32), BYTES.eos_id)
    assert ours is not None
    assert_array_equal(ours, types)
    with torch.no_grad():
        expected = theirs(row, token_type_ids=types).last_hidden_state
        assert_close(hidden_states(model, row, token_types=types), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(hidden_states(model, row), expected, atol=1e-2)


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
