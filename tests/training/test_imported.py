"""A run starts from an imported model with its shape, tokenizer and weights, or names the mismatch."""

from pathlib import Path

import pytest
import torch
from families import random_model, shape
from folders import BYTES, write_ours

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.errors import ConfigError
from pretrain.interop.families import BERT_FAMILY, LLAMA_FAMILY
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.models.choices import Position
from pretrain.models.config import TransformerConfig
from pretrain.training.train import run

SHAPE = shape("llama", qk_norm=False, context_length=32, vocab_multiple=64, norm_eps=1e-6)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Return the Hugging Face folder of a tiny Llama, in a folder with a difficult name."""
    model = random_model(SHAPE, SHAPE.vocabulary(BYTES.vocab_size), causal=True)
    return write_ours(tmp_path / "it's a, {folder} = x", LLAMA_FAMILY, model)


def imported(tiny, folder: Path, *words: str) -> list[str]:
    """Return the words of a run that takes everything from a folder."""
    tiny.words = [word for word in tiny.words if not word.startswith(("model.", "tokenizer="))]
    quoted = str(folder).replace("'", "\\'")
    return ["model=imported", f"init_from='{quoted}'", "trainer.max_steps=1", "schedule.warmup_steps=0", *words]


@pytest.mark.slow
def test_a_run_takes_shape_tokenizer_and_weights_from_a_folder(tiny, llama):
    config: RunConfig = tiny.config(*imported(tiny, llama, "model.dropout=0.1", "optimizer.learning_rate=1e-12"))
    assert type(config.model) is TransformerConfig  # the saved settings hold plain values
    assert not config.model.differences(SHAPE)
    assert (config.model.dropout, config.model.vocab_multiple, config.objective.kind) == (0.1, 64, "causal")
    assert config.tokenizer.path == str(llama)
    report = run(tiny.plan(*imported(tiny, llama, "optimizer.learning_rate=1e-12", "checkpoint.every_n_steps=1")))
    saved = open_checkpoint(Path(report.folder)).tensors("model")
    before = open_model(llama).load()
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(saved[name], parameter.detach(), atol=1e-6, rtol=1e-6)
    again = tiny.config("model=imported", f"init_from={report.folder}")  # and from a run of ours
    assert to_dict(again)["model"] == to_dict(open_model(report.folder).run)["model"]

    resumed = run(tiny.plan("model=imported", "resume=auto", "trainer.max_steps=2", "schedule.warmup_steps=0"))
    assert (resumed.folder, resumed.steps) == (report.folder, 2)


@pytest.mark.slow
def test_a_masked_model_brings_its_objective_along(tiny, tmp_path):
    model = random_model(shape("bert"), BYTES.vocab_size, causal=False)
    folder = write_ours(tmp_path / "bert", BERT_FAMILY, model)
    assert tiny.config(*imported(tiny, folder)).objective.kind == "masked"
    assert tiny.config(*imported(tiny, folder, "objective=masked_30")).objective.mask_probability == 0.3
    assert tiny.config(*imported(tiny, folder, "objective=causal")).objective.kind == "causal"
    spans = ["objective.mask_probability=0.25", "objective.unit=span", "objective.z_loss=1e-4"]
    report = run(tiny.plan("model=bert_nano", *spans, "trainer.max_steps=1", "schedule.warmup_steps=0"))
    brought = tiny.config(*imported(tiny, Path(report.folder))).objective
    assert brought == open_model(report.folder).objective
    assert (brought.mask_probability, brought.unit.name, brought.z_loss) == (0.25, "span", 1e-4)


@pytest.mark.slow
def test_settings_that_do_not_fit_the_folder_are_refused(tiny, llama):
    with pytest.raises(
        ConfigError, match=r"model=imported takes shape and tokenizer of the model that init_from names"
    ):
        tiny.config("model=imported")
    words = imported(tiny, llama)
    with pytest.raises(ConfigError, match=r"was trained with another tokenizer .* Try model=imported, which brings"):
        run(tiny.plan(*words, "tokenizer=bpe", "tokenizer.vocab_size=300"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "model.norm_eps=0.5",
            r"has model\.norm_eps=1e-06, and this run has model\.norm_eps=0\.5\. Take the whole shape",
        ),
        ("model.n_layers=1", r"has model\.n_layers=2, and this run has model\.n_layers=1\."),
        (
            "model.vocab_multiple=1",
            r"vocab_multiple=64, which gives its embedding 320 rows, and this run has model\.vocab_multiple=1, which "
            r"gives it 259\. Try model\.vocab_multiple=64\.",
        ),
        (
            "model.position=learned",
            rf"has model\.position={Position.rope.name}, and this run has model\.position=learned",
        ),
    ],
)
def test_a_shape_that_is_not_the_folders_is_refused_or_allowed_by_name(tiny, llama, change, message):
    words = imported(tiny, llama, change)
    with pytest.raises(ConfigError, match=message):
        run(tiny.plan(*words))
    if "vocab_multiple" in change:  # other multiples may give as many rows
        assert run(tiny.plan(*imported(tiny, llama, "model.vocab_multiple=320"))).steps == 1
    if "norm_eps" in change:
        assert run(tiny.plan(*words, "allow_change=[model.norm_eps]")).steps == 1


@pytest.mark.slow
def test_a_masked_model_becomes_a_classifier_with_a_new_head(tiny, tmp_path):
    folder = write_ours(tmp_path / "bert", BERT_FAMILY, random_model(shape("bert"), BYTES.vocab_size, causal=False))
    texts = tmp_path / "texts.tsv"
    texts.write_text("".join(f"a {word} film {n}\t{word}\n" for n in range(20) for word in ("good", "bad")))
    words = [word for word in imported(tiny, folder) if not word.startswith("model=")]
    tiny.words = [word for word in tiny.words if not word.startswith("data")]
    words += ["experiment=classify", f"data.path={texts}", "optimizer.learning_rate=1e-12"]
    report = run(tiny.plan(*words))
    saved, before = open_checkpoint(Path(report.folder)).tensors("model"), open_model(folder).load()
    for name, parameter in before.named_parameters():
        if not name.startswith("head."):
            torch.testing.assert_close(saved[name], parameter.detach(), atol=1e-6, rtol=1e-6)
    probabilities = LanguageModel.load(report.folder).classify("a good film")
    assert list(probabilities) == ["bad", "good"]
    assert sum(probabilities.values()) == pytest.approx(1.0)
