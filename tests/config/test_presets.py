"""Every preset composes; every model has the size that its file and its paper give."""

import re
from pathlib import Path

import pytest
import torch

from pretrain.config.compose import CONFIG_FOLDER, compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.models.size import parameter_count

GPT2, BERT, OWN = 50257, 30522, 2048  # vocabularies
PUBLISHED = {
    "gpt_small": (GPT2, 124_439_808),
    "gpt_medium": (GPT2, 354_823_168),
    "gpt_large": (GPT2, 774_030_080),
    "gpt_xl": (GPT2, 1_557_611_200),
    "bert_base": (BERT, 109_514_298),
    "bert_large": (BERT, 335_174_458),
    "llama_160m": (32_000, 162_417_408),
    "llama_1b": (128_256, 1_235_814_400),
    "llama_7b": (32_000, 6_738_415_616),
    "modernbert_base": (50_368, 149_655_232),
    "modernbert_large": (50_368, 395_881_664),
    "llama_nano": (OWN, 1_049_728),
    "modernbert_nano": (OWN, 838_912),
    "gpt_nano": (OWN, 1_050_240),
    "bert_nano": (OWN, 1_068_800),
    "hybrid_nano": (OWN, 1_050_240),
}
NEEDS = {
    "data=text_files": ["data.path=x"],
    "data=mixture": ["data.sources={b: {kind: python_docs, weight: 1}, a: {kind: text_files, path: x, weight: 0.1}}"],
    "data=hugging_face": ["data.path=x"],
    "data=pairs": ["data.path=x"],
    "data=labelled": ["data.path=x", "objective=classify"],
    "objective=classify": ["data=labelled", "data.path=x"],
    "experiment=instruct": ["data.path=x", "model=gpt_nano"],
    "experiment=classify": ["data.path=x", "model=bert_nano"],
    "experiment=shakespeare": ["data.path=x"],
    "experiment=shakespeare_char": ["data.path=x"],
    "experiment=novels_small": ["data.path=x"],
    "experiment=novels_small_masked": ["data.path=x"],
    "experiment=continue": ["resume=x", "data.sources.domain.path=x", "data.sources.replay.path=x"],  # no model to read
    "tokenizer=pretrained": ["tokenizer.path=x"],
}
OTHERS = sorted(
    f"{path.parent.name}={path.stem}" for path in CONFIG_FOLDER.glob("*/*.yaml") if path.parent.name != "model"
)


@pytest.fixture(autouse=True)
def schemas() -> None:
    register_schemas("train", RunConfig)


def test_no_preset_of_a_model_is_left_out() -> None:
    assert {path.stem for path in (CONFIG_FOLDER / "model").iterdir()} == {*PUBLISHED, "imported"}
    assert len(PUBLISHED) == 16


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_its_published_size(name: str) -> None:
    vocab_size, count = PUBLISHED[name]
    config: RunConfig = compose("train", [f"model={name}"])
    assert config.name == name
    assert config.model.vocabulary(vocab_size) == vocab_size
    with torch.device("meta"):
        model = config.model.build(vocab_size, config.objective.causal)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert parameter_count(config.model, vocab_size) == count
    assert config.objective.causal is ("bert" not in name)
    header = (CONFIG_FOLDER / "model" / f"{name}.yaml").read_text(encoding="utf8")
    claimed = re.search(r"# ([\d.]+) ([MB]) parameters", header)
    assert claimed is not None
    decimals = len(claimed[1].partition(".")[2])
    assert f"{count / {'M': 1e6, 'B': 1e9}[claimed[2]]:.{decimals}f}" == claimed[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_a_run_survive_being_saved(name: str) -> None:
    config: RunConfig = compose("train", [f"model={name}"])
    assert from_dict(to_dict(config)) == config
    steps = config.max_steps()
    assert steps is not None
    assert config.schedule.share(0, steps) <= 1.0
    assert config.warmup_steps() < steps


@pytest.mark.parametrize("word", OTHERS)
def test_every_other_preset_composes(word: str) -> None:
    group = word.split("=")[0]
    config: RunConfig = compose("train", [word, *NEEDS.get(word, [])])
    assert from_dict(to_dict(config)) == config
    assert hasattr(config, group) or group == "experiment"


def test_no_preset_names_a_folder_of_one_machine() -> None:
    for path in Path(CONFIG_FOLDER).rglob("*.yaml"):
        assert not re.search(r"[\s\"'](/|~)\w+/", path.read_text(encoding="utf8").replace("override /", "")), path
