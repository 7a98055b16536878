"""Runs, checkpoints, Hugging Face folders and hub names open in one form."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from folders import BYTES, write_ours

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.evaluation import scorer
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score_documents
from pretrain.interop import folder as hub
from pretrain.interop.families import BERT_FAMILY, LLAMA_FAMILY
from pretrain.interop.load import open_model
from pretrain.interop.sentence_transformers_folder import write_modules
from pretrain.language_model import LanguageModel
from pretrain.objectives.config import CausalConfig, MaskedConfig


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Hugging Face folder of a tiny Llama."""
    model = random_model(shape("llama", qk_norm=False), BYTES.vocab_size, causal=True)
    return write_ours(tmp_path_factory.mktemp("hub") / "llama", LLAMA_FAMILY, model)


def test_a_folder_made_elsewhere_has_the_usual_objective(llama: Path, tmp_path: Path) -> None:
    found = open_model(str(llama))
    assert (found.objective, found.run, found.metadata) == (CausalConfig(), None, {"architecture": "LlamaForCausalLM"})
    assert found.starts_with_bos
    masked = write_ours(tmp_path, BERT_FAMILY, random_model(shape("bert"), BYTES.vocab_size, causal=False))
    assert open_model(masked).objective == MaskedConfig()


@pytest.mark.parametrize(("mode", "pooling"), [("cls_token", "first"), ("lasttoken", "last"), ("mean_tokens", "mean")])
def test_a_folder_says_how_its_vectors_are_pooled(mode: str, pooling: str, tmp_path: Path) -> None:
    """By the modules of sentence-transformers, which an export writes too: any other pooling is another vector."""
    folder = write_ours(tmp_path / "in", BERT_FAMILY, random_model(shape("bert"), BYTES.vocab_size, causal=False))
    plain = LanguageModel.load(folder)
    assert torch.equal(plain.embed("the fox"), plain.embed("the fox", "mean"))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{each}": each == mode for each in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    settings = {"word_embedding_dimension": plain.model.config.d_model, **modes, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    llm = LanguageModel.load(folder)
    assert torch.equal(llm.embed("the fox"), plain.embed("the fox", pooling))
    assert torch.equal(llm.embed("the fox", "mean"), plain.embed("the fox", "mean"))
    assert len(llm.predict_mask("the [MASK]")) == 1  # it predicts tokens as before
    write_modules(tmp_path, open_model(folder), ([BYTES.bos_id], [BYTES.eos_id]))
    listed = [{"idx": 0, "path": "", "name": "0", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert torch.equal(LanguageModel.load(folder).embed("the fox"), plain.embed("the fox", pooling))
    listed.append({"idx": 1, "path": "2_Dense", "name": "1", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(listed))
    dense = LanguageModel.load(folder)
    with pytest.raises(CheckpointError, match=r"makes its vectors by 2_Dense, which is not computed here"):
        dense.embed("the fox")
    with pytest.raises(CheckpointError, match="2_Dense"):
        dense.embed_beginnings(["the fox"])
    assert torch.equal(dense.embed("the fox", "mean"), plain.embed("the fox", "mean"))
    (folder / "modules.json").write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match=r"modules\.json is no list of modules"):
        LanguageModel.load(folder)
    written = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert {key for key, value in written.items() if value is True} == {f"pooling_mode_{mode}"}


def test_a_published_model_embeds_the_ids_that_its_tokenizer_adds(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)  # its tokenizer adds BOS, and nothing after a text
    plain = LanguageModel.load(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    llm = LanguageModel.load(folder)
    hidden = llm.model(torch.tensor([llm.prompt_ids("the fox")]))[0, -1]
    assert torch.allclose(llm.embed("the fox"), hidden, atol=1e-5)
    assert not torch.allclose(plain.embed("the fox"), hidden, atol=1e-2)
    length = llm.model.config.context_length
    assert llm.embed_beginnings(["a" * length]).shape == (1, llm.model.config.d_model)
    with pytest.raises(ConfigError, match=rf"a text of {length} tokens cannot be embedded: .* 1 and {length - 1} fit"):
        llm.embed("a" * length)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match=r"by the pooling of 1_Pooling/config\.json, which is not computed here"):
        LanguageModel.load(folder).embed("the fox")


def test_a_prompt_begins_as_the_tokenizer_of_the_folder_says(llama: Path, tmp_path: Path) -> None:
    """GPT-2's and SmolLM2's add nothing; an empty prompt still needs a first token."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in llama.iterdir():
        (plain / path.name).write_bytes(path.read_bytes())
    BYTES.save(plain)
    with_bos, without = LanguageModel.load(llama), LanguageModel.load(plain)
    assert (with_bos.starts_with_bos, without.starts_with_bos) == (True, False)
    assert [without.prompt_ids(text) for text in ("ab", "")] == [[97, 98], [256]]
    assert [with_bos.prompt_ids(text) for text in ("ab", "")] == [[256, 97, 98], [256]]


def test_a_hub_name_is_owner_and_name_without_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for name in ("openai-community/gpt2", "a/b@main", "a/b@refs/pr/1"):
        assert hub.is_hub_name(name)
    for name in ("gpt2", "logs/gpt_nano", "./a/b", "../a/b", "/a/b", "~/a/b", "a/b/c", "logs", "", "a/b c"):
        assert not hub.is_hub_name(name)


def test_only_plain_files_are_fetched_from_the_hub(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert {pattern.rpartition(".")[2] for pattern in allow_patterns} == {"json", "safetensors", "txt", "jinja"}
        return str(llama)

    monkeypatch.setattr(importlib.import_module("huggingface_hub"), "snapshot_download", snapshot_download)
    assert open_model("somebody/llama@v1").folder == llama
    assert open_model("somebody/llama").folder == llama
    assert asked == [("somebody/llama", "v1"), ("somebody/llama", None)]


def test_a_name_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="nobody/nothing is neither a folder here nor a model that the hub returns"
    ):
        open_model("nobody/nothing")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", r"nowhere does not exist\. Name a run's folder, a folder of runs, .* the hub"),
        ("file", r"file is a file, and a model is a folder\. Name a run's folder"),
        ("empty", r"empty holds no model, and no folder below it is a run with a checkpoint\. Name a run's folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_model(tmp_path / name)
    (tmp_path / "empty" / "checkpoints").mkdir()  # of a run that has not saved
    with pytest.raises(CheckpointError, match="holds no usable checkpoint"):
        open_model(tmp_path / "empty")


@pytest.mark.slow
def test_documents_are_scored_by_a_model_made_elsewhere(
    llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scorer, "SECONDS_BETWEEN_LINES", 0.0)
    settings = EvalConfig(path=str(corpus), batch_size=4)
    settings.paths.cache_dir = str(tmp_path / "cache")
    figures = score_documents(settings, llama)
    assert capsys.readouterr().err.splitlines()[-1] == "documents 100%  0:00 left"
    assert figures["checkpoint"] == str(llama)
    assert figures["documents"] == 60
    llm = LanguageModel.load(llama)
    text = sorted(corpus.iterdir())[0].read_text()
    tokens = [BYTES.bos_id, *BYTES.encode(text), BYTES.eos_id][:32]
    with torch.no_grad():
        logits = llm.model.head(llm.model(torch.tensor([tokens])))[0]
    one = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    assert figures["loss"] == pytest.approx(float(one), rel=0.5)  # of a random model, whatever the text
    with pytest.raises(DataError, match=r"was not trained here, so its documents are unknown\. Give files: path="):
        score_documents(EvalConfig(), llama)


def test_text_behind_a_prompt_keeps_its_space(assets: Path) -> None:
    """A decoder of SentencePiece's kind drops the space of a text's first word."""
    tokenizer = Tokenizer.load(assets / "models" / "stories260K" / "hf")
    prompt, rest = tokenizer.encode("Once upon a"), tokenizer.encode("Once upon a time there")
    new = rest[len(prompt) :]
    assert (tokenizer.decode(new), tokenizer.decode_after(prompt, new)) == ("time there", " time there")
    assert tokenizer.decode_after([], rest) == "Once upon a time there"
    assert tokenizer.decode_after([tokenizer.bos_id], rest) == "Once upon a time there"
    llm = LanguageModel.load(assets / "models" / "stories260K" / "hf")
    text = llm.generate("Once upon a", temperature=0, max_new_tokens=12)
    assert text == "Once upon a time, there was a little girl named Lily."
    assert "".join(["Once upon a", *llm.stream("Once upon a", temperature=0, max_new_tokens=12)]) == text
