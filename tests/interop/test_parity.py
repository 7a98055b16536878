"""Import and export of random shapes of all families: transformers' logits, and bitwise equal weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from family_shapes import STRATEGIES, THEIRS
from folders import BYTES, lively_weights, write_ours, write_theirs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch.testing import assert_close

from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.errors import ConfigError
from pretrain.interop.comparison import compare, compare_tokenizers, our_outputs, without_padding
from pretrain.interop.families import FAMILIES
from pretrain.interop.families_table import families_table
from pretrain.interop.family import choose_family
from pretrain.interop.load import open_model
from pretrain.models.choices import Activation

LENGTH = 24
few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
many_or_few = pytest.mark.parametrize("shapes", [5, pytest.param(200, marks=pytest.mark.long)])


def test_every_family_is_tried() -> None:
    assert list(STRATEGIES) == [family.model_type for family in FAMILIES]


@pytest.mark.slow
@many_or_few
@pytest.mark.parametrize("name", STRATEGIES)
def test_ours_goes_out_and_comes_back(name: str, shapes: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers loads what we wrote, every tensor of it, computes the same, and we read the same bits again."""

    @settings(few, max_examples=shapes)
    @given(data=st.data())
    def check(data: DataObject) -> None:
        goes_out_and_comes_back(name, data, tmp_path_factory)

    check()


def goes_out_and_comes_back(name: str, data: DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = data.draw(STRATEGIES[name])
    config.vocab_multiple = data.draw(st.sampled_from([1, 64, 100]))
    family = next(family for family in FAMILIES if family.model_type == name)
    assert choose_family(config, family.causal, FAMILIES, name) is family
    model = random_model(config, config.vocabulary(BYTES.vocab_size), family.causal)
    small = data.draw(st.sampled_from([30_000, 10**9]))  # bytes of a shard
    folder = write_ours(tmp_path_factory.mktemp("folder"), family, model, max_shard_bytes=small)
    assert (len(list(folder.glob("model-*.safetensors"))) > 1) is (small == 30_000)

    rows = torch.randint(model.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    rows = without_padding(model, rows)
    bare = family.class_of(config) == family.bare
    expected = our_outputs(model, rows, bare)
    assert min(float(each.std()) for each in expected) > 0.3  # neither is flat
    compare(folder, family.class_of(config), rows, expected)

    again = open_model(folder)
    assert not again.shape.differences(config)  # type: ignore[attr-defined]
    assert again.shape.context_length == config.context_length
    assert again.objective.causal is family.causal
    loaded = again.load()
    assert loaded.vocab_size == model.vocab_size
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(parameter_name), parameter), parameter_name


@many_or_few
@pytest.mark.parametrize(
    "theirs",
    THEIRS,
)  # fmt: skip
def test_theirs_comes_in_and_goes_out(theirs: Any, shapes: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What transformers saved gives its own logits here, and is written again as it was, to the bit."""

    @settings(few, max_examples=shapes)
    @given(data=st.data())
    def check(data: DataObject) -> None:
        comes_in_and_goes_out(theirs, data, tmp_path_factory)

    check()


def comes_in_and_goes_out(theirs: Any, data: DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = lively_weights(theirs(data.draw))
    folder = write_theirs(
        tmp_path_factory.mktemp("theirs"), model, max_shard_size=data.draw(st.sampled_from(["20KB", "1GB"]))
    )
    found = open_model(folder)
    ours = found.load().eval()
    tokens = torch.randint(model.config.vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens = without_padding(ours, tokens)
    with torch.no_grad():
        output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        hidden = ours(tokens)
    if type(model).__name__ in [family.bare for family in FAMILIES]:
        assert_close(hidden, output.last_hidden_state, atol=1e-4, rtol=1e-4)
    else:
        expected = output.prediction_logits if "prediction_logits" in output else output.logits
        assert expected.std() > 0.3  # neither is flat
        assert_close(ours.head(hidden), expected, atol=1e-4, rtol=1e-4)

    family = choose_family(found.shape, found.objective.causal, FAMILIES, model.config.model_type)  # type: ignore[arg-type]
    again = TensorFiles(sorted(write_ours(tmp_path_factory.mktemp("ours"), family, ours).glob("*.safetensors")))
    state = {family.names.canonical(name): value for name, value in model.state_dict().items()}
    assert again.shapes.keys() <= state.keys()
    for name in again.shapes:
        assert torch.equal(again.read(name), state[name]), name


def test_positions_that_do_not_start_behind_the_padding_token_are_refused(tmp_path: Path) -> None:
    config = shape("bert", feed_forward=Activation.gelu, position_offset=2)
    family = choose_family(config, False, FAMILIES)
    with pytest.raises(
        ConfigError, match=r"position_offset=2 and .* 257 do not fit.* Train with model.position_offset=258"
    ):
        write_ours(tmp_path / "folder", family, random_model(config, BYTES.vocab_size, False))


def test_the_guide_has_the_table_of_families() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "hugging-face-in-and-out.md").read_text(encoding="utf-8")
    table = page.partition("<!-- families -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == families_table(), "the table is old: python -m pretrain.interop.families_table prints it"


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_their_tokenizer_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.model_type == name)
    config = shape("bert" if name == "bert" else "llama", qk_norm=False)
    folder = write_ours(tmp_path / "folder", family, random_model(config, BYTES.vocab_size, family.causal))
    compare_tokenizers(folder, BYTES, ([256], [] if family.causal else [256]))
    again = open_model(folder)
    assert again.tokenizer.fingerprint == BYTES.fingerprint  # what is put around a text does not count
    assert again.tokenizer.added_ids == ([256], [] if family.causal else [256])
    assert again.starts_with_bos
    assert BYTES.added_ids == ([], [])
