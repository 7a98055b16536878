"""The coordinate check of muP: it passes for every kind of model and optimizer, and a wrong rate is found."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pretrain.doctor import coordinates
from pretrain.doctor.check import NotApplicableError
from pretrain.doctor.coordinates import steps_change_every_width_alike
from pretrain.models.config import TransformerConfig
from pretrain.optim import groups

MUP = ("model.parametrization=mup", "model.base_width=8")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=adamw", "optimizer.learning_rate=0.02"],  # too high to train with: the small steps tell it apart
        ["model=bert_nano", "optimizer=stable_adamw"],
        ["optimizer.update_scale=spectral"],
        ["optimizer.update_scale=spectral", "optimizer.row_beta2=0.95"],
        ["model.base_head_dim=4", "model.attention_gate=head", "model.value_embeddings_every=2"],  # wider heads
    ],
    ids=["adamw", "bert", "spectral", "spectral, even rows", "muon, wider heads"],
)
def test_every_width_changes_alike(context: Any, words: list[str]) -> None:
    found = steps_change_every_width_alike(context(*words, *MUP))
    assert found.passed, found
    assert "3 steps change the " in found.figures


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_optimizer_that_does_not_scale_its_rates_is_found(
    context: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr(groups, "roles_by_width", lambda roles, model: roles)
    found = steps_change_every_width_alike(context(f"optimizer={optimizer}", *MUP))
    assert not found.passed
    assert f"No rate holds at another width: optimizer.kind={optimizer} must scale those of matrices" in found.figures


@pytest.mark.slow
def test_logits_that_fall_with_the_width_are_found(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor of the head counted twice."""
    squared = property(lambda shape: (shape.d_model / shape.base_width) ** 2)
    monkeypatch.setattr(TransformerConfig, "width_multiplier", squared)
    found = steps_change_every_width_alike(context("optimizer=adamw", *MUP))
    assert not found.passed, found


@pytest.mark.slow
def test_a_model_without_mup_has_nothing_to_check(context: Any) -> None:
    with pytest.raises(NotApplicableError, match=r"model\.parametrization=standard has no base width"):
        steps_change_every_width_alike(context())


@pytest.mark.parametrize(("sizes", "power"), [([2.0, 2.0, 2.0], 0.0), ([1.0, 2.0, 4.0], 1.0), ([4.0, 2.0, 1.0], -1.0)])
def test_the_power_is_that_of_the_law(sizes: list[float], power: float) -> None:
    assert coordinates._power([64, 128, 256], sizes) == pytest.approx(power)
    assert str(coordinates._power([64, 128, 256], [1.0, 0.0, 1.0])) == "nan"
