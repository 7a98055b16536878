"""A causal or masked model becomes a masked diffusion, which samples, is scored, and is exported or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from folders import BYTES, without_mask, write_ours

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.scripts import ExportConfig
from pretrain.data.prepare import prepare
from pretrain.errors import ConfigError
from pretrain.interop.export import export_model
from pretrain.interop.families import BERT_FAMILY, LLAMA_FAMILY, MODERN_BERT_FAMILY
from pretrain.interop.load import build_without_weights, open_model
from pretrain.language_model import LanguageModel
from pretrain.training.fine_tuning import base_weights
from pretrain.training.train import run

SHAPE = shape("llama", qk_norm=False, context_length=64, norm_eps=1e-6)
HARDLY = ["optimizer.learning_rate=1e-12", "trainer.max_steps=1", "schedule.warmup_steps=0", "trainer.max_time=null"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return the folder of a tiny Llama whose tokenizer has no mask token."""
    model = random_model(SHAPE, BYTES.vocab_size - 1, causal=True)
    folder = write_ours(tmp_path / "base", LLAMA_FAMILY, model)
    without_mask(BYTES).save(folder)
    return folder


def converting(tiny: Any, base: Path, *words: str) -> list[str]:
    tiny.words = [word for word in tiny.words if not word.startswith(("model.", "tokenizer=", "data=", "batch_size"))]
    return ["experiment=convert_to_diffusion", f"init_from={base}", "batch_size=4", *HARDLY, *words]


def test_a_mask_token_is_added_or_chosen() -> None:
    bare = without_mask(BYTES)
    assert bare.mask_id is None
    added = bare.with_mask("[HIDDEN]")
    assert (added.mask_id, added.vocab_size) == (bare.vocab_size, bare.vocab_size + 1)
    assert added.encode("a [HIDDEN] b") == bare.encode("a [HIDDEN] b")  # in a document its spelling is text
    assert added.mask_id in added.encode_prompt("a [HIDDEN] b")
    assert BYTES.with_mask("[HIDDEN]") is BYTES
    for token in ("a", bare.token(bare.eos_id), ""):
        with pytest.raises(ConfigError, match=r"tokenizer\.mask_token='.*' is a token with another use"):
            bare.with_mask(token)


@pytest.mark.long
def test_a_causal_model_becomes_a_diffusion_that_responds(tiny: Any, base: Path, tmp_path: Path, capsys: Any) -> None:
    report = run(tiny.plan(*converting(tiny, base)))
    printed = "".join(capsys.readouterr())
    assert "is causal, and objective=diffusion reads text from both sides: its attention becomes bidirect" in printed
    assert "1 new row of the embedding: the mean of the others" in printed
    found = open_model(report.folder)
    assert (found.objective.kind, found.objective.shift_targets, found.tokenizer.mask_id) == ("diffusion", True, 258)
    saved, before = open_checkpoint(Path(report.folder)).tensors("model"), open_model(base).load()
    for name, parameter in before.named_parameters():
        rows = len(parameter)
        torch.testing.assert_close(saved[name][:rows], parameter.detach(), atol=1e-6, rtol=1e-6)
        if len(saved[name]) > rows:
            torch.testing.assert_close(saved[name][rows], parameter.detach().mean(0), atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"was trained with objective\.shift=true: .* objective\.shift=false to exp"):
        export_model(ExportConfig(output=str(tmp_path / "out")), report.folder)

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"say {n}", "response": "it is said"}) + "\n" for n in range(40)))
    tiny.words = [word for word in tiny.words if not word.startswith("data.path")]
    words = ["experiment=instruct", f"init_from={report.folder}", f"data.path={pairs}", "batch_size=4"]
    tuned = run(tiny.plan(*words, "optimizer.learning_rate=0.01", f"paths.run_dir={tmp_path / 'tuned'}"))
    assert open_model(tuned.folder).objective.shift_targets  # the base's
    assert tuned.validation["val/loss_bound"] > 0
    assert tuned.validation_targets[""] == len(" it is said") + 1  # the response and its end alone
    assert LanguageModel.load(tuned.folder).respond("say 1", max_new_tokens=4, seed=0) is not None


@pytest.mark.parametrize("multiple", [1, 8, 86], ids=["no padding", "room in the padding", "one more multiple"])
def test_a_new_token_begins_as_the_mean_of_the_others(tiny: Any, tmp_path: Path, multiple: int) -> None:
    """A row of padding was never that of a token: what stands there is no start for one."""
    bare, padded = without_mask(BYTES), shape("llama", qk_norm=False, context_length=64, vocab_multiple=multiple)
    model = random_model(padded, padded.vocabulary(bare.vocab_size), causal=True)
    folder = write_ours(tmp_path / "base", LLAMA_FAMILY, model)
    bare.save(folder)
    plan = tiny.plan(*converting(tiny, folder, f"model.vocab_multiple={multiple}"))
    prepared = prepare(plan.config.data, plan.config.tokenizer, Path(plan.config.paths.cache_dir))
    new = build_without_weights(plan.config.model, plan.config.objective, prepared.tokenizer)
    load = base_weights(plan.config, open_model(folder), prepared, new)
    for name, parameter in new.named_parameters():
        value, before = load(name, parameter.shape), model.get_parameter(name).detach()
        assert value.shape == parameter.shape
        if len(value) < bare.vocab_size:
            torch.testing.assert_close(value, before, atol=0, rtol=0)
            continue
        torch.testing.assert_close(value[: bare.vocab_size], before[: bare.vocab_size], atol=0, rtol=0)
        torch.testing.assert_close(value[bare.vocab_size], before[: bare.vocab_size].mean(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"), [("bert", BERT_FAMILY), ("modern_bert", MODERN_BERT_FAMILY)], ids=["bert", "modern_bert"]
)
def test_a_masked_model_becomes_a_diffusion_and_goes_back(name: str, family: Any, tiny: Any, tmp_path: Path) -> None:
    """A folder of transformers in, some steps with samples, its bound, and a folder of transformers out."""
    start = random_model(shape(name, context_length=64), BYTES.vocab_size, causal=False)
    base = write_ours(tmp_path / "base", family, start)
    words = ["optimizer.learning_rate=0.003", "trainer.max_steps=20", "trainer.val_check_interval=20"]
    words += [
        "trainer.validate_first=true",
        "sample.every_n_steps=10",
        "sample.prompts=['The quick', 'a [MASK][MASK]']",
    ]
    report = run(tiny.plan(*converting(tiny, base, "objective.random_length_rows=0.5", *words)))
    assert report.validation["val/loss_bound"] < report.first_validation["val/loss_bound"]
    samples = [json.loads(line) for line in (Path(report.folder) / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [10, 20]
    for sample in samples:
        assert "The quick" in str(sample)
        assert "a [MASK][MASK]" in str(sample)
        assert "no sample" not in str(sample)

    found = open_model(report.folder)
    assert (found.objective.kind, found.objective.shift_targets) == ("diffusion", False)  # it predicts in place
    llm = LanguageModel.load(report.folder)
    score = llm.score("The quick brown fox")
    assert score.is_bound
    assert score.standard_error is not None
    exported = export_model(ExportConfig(output=str(tmp_path / "out")), report.folder)
    assert exported.card.auto_class == "AutoModelForMaskedLM"
    assert exported.largest_difference is not None  # of logits, in transformers
    assert exported.largest_difference < 1e-3
    again = open_model(tmp_path / "out").load()
    before = dict(start.named_parameters())
    trained = found.load()
    for key, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, trained.get_parameter(key), atol=0, rtol=0)
    assert any(not torch.equal(parameter, before[key]) for key, parameter in trained.named_parameters())


@pytest.mark.slow
def test_a_base_without_a_mask_token_says_what_to_type(tiny: Any, base: Path) -> None:
    words = converting(tiny, base, "tokenizer.mask_token=null")
    with pytest.raises(ConfigError, match=r"tokenizer\.mask_token='\[MASK\]', which adds one to a pretrained tok"):
        run(tiny.plan(*words))
