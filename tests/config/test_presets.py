"""Every preset composes; every model has the size that its file and its paper give."""

import json
import re
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf

from pretrain.config.compose import compose, composed, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.config.launcher import register_plugins
from pretrain.config.overrides import parsed
from pretrain.config.preset_folders import CONFIG_FOLDER
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.data.curation.config import RulesConfig
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
    "ettin_17m": (50_368, 16_913_600),
    "ettin_32m": (50_368, 32_081_344),
    "ettin_68m": (50_368, 68_457_664),
    "neobert": (BERT, 245_106_432),
    "gpt_bert": (8_192, 28_083_968),
    "llama_nano": (OWN, 1_049_728),
    "modernbert_nano": (OWN, 838_912),
    "gpt_nano": (OWN, 1_050_240),
    "bert_nano": (OWN, 1_068_800),
    "hybrid_nano": (OWN, 1_050_240),
    "diffusion_nano": (OWN, 1_050_240),
    "diffusion_small": (GPT2, 123_552_768),
}
NEEDS = {
    "data=text_files": ["data.path=x"],
    "data=mixture": ["data.sources={b: {kind: python_docs, weight: 1}, a: {kind: text_files, path: x, weight: 0.1}}"],
    "data=hugging_face": ["data.path=x"],
    "data=curated": ["data.path=x"],
    "data=prepared": ["data.path=x"],
    "data=pairs": ["data.path=x"],
    "data=chat": ["data.path=x"],
    "data=labeled": ["data.path=x", "objective=classify"],
    "objective=classify": ["data=labeled", "data.path=x"],
    "data=related": ["data.path=x", "objective=contrastive"],
    "objective=contrastive": ["data=related", "data.path=x"],
    "objective=regress": ["data=labeled", "data.path=x", "data.numeric_labels=true"],
    "experiment=regress": ["data.path=x", "model=bert_nano"],
    "experiment=extend_context": ["data.path=x", "resume=x"],  # no model to read
    "experiment=embed": ["data.path=x", "model=bert_nano"],
    "experiment=instruct": ["data.path=x", "model=gpt_nano"],
    "experiment=chat": ["data.path=x", "model=gpt_nano"],
    "experiment=lora": ["data.path=x", "resume=x"],  # no model to read
    "experiment=classify": ["data.path=x", "model=bert_nano"],
    "experiment=shakespeare": ["data.path=x"],
    "experiment=shakespeare_char": ["data.path=x"],
    "experiment=novels_small": ["data.path=x"],
    "experiment=novels_small_masked": ["data.path=x"],
    "experiment=novels_small_diffusion": ["data.path=x"],
    "experiment=convert_to_diffusion": ["data.path=x", "model=gpt_nano", "tokenizer=pretrained", "tokenizer.path=x"],
    "experiment=continue": ["resume=x", "data.sources.domain.path=x", "data.sources.replay.path=x"],  # no model to read
    "search=shakespeare": ["data.path=x"],
    "search=novels_small": ["data.path=x"],
    "tokenizer=pretrained": ["tokenizer.path=x"],
    **{
        f"experiment={name}": ["data.path=x"] for name in ("modernbert_base", "modernbert_large", "neobert", "gpt_bert")
    },
    **{
        f"experiment=ettin_{size}{kind}": ["data.path=x"] for size in ("17m", "32m", "68m") for kind in ("", "_decoder")
    },
}
OF_CURATION = ("rules", "licenses", "language", "duplicates", "engine")  # groups of another command
OTHERS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONFIG_FOLDER.glob("*/*.yaml")
    if path.parent.name not in ("model", *OF_CURATION)
)
# settings of every preset as differences from those of the command without any, written before recipes were files
SETTINGS: dict[str, dict[str, object]] = json.loads((Path(__file__).parent / "preset_settings.json").read_text())
MUON_TUNED = ["gpt_nano", "llama_nano", "hybrid_nano", "diffusion_nano", "bert_nano", "modernbert_nano"]


@pytest.fixture(autouse=True)
def schemas() -> None:
    register_plugins()


def test_no_preset_of_a_model_is_left_out() -> None:
    assert {path.stem for path in (CONFIG_FOLDER / "model").iterdir()} == {*PUBLISHED, "imported"}
    assert len(PUBLISHED) == 23


@pytest.mark.slow
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
    bidirectional = any(kind in name for kind in ("bert", "diffusion", "ettin")) and name != "gpt_bert"
    assert config.objective.causal is not bidirectional
    header = (CONFIG_FOLDER / "model" / f"{name}.yaml").read_text(encoding="utf8")
    claimed = re.search(r"# ([\d.]+) ([MB]) parameters", header)
    assert claimed is not None
    decimals = len(claimed[1].partition(".")[2])
    assert f"{count / {'M': 1e6, 'B': 1e9}[claimed[2]]:.{decimals}f}" == claimed[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_a_run_survive_being_saved(name: str) -> None:
    config: RunConfig = compose("train", [f"model={name}"])
    assert from_dict(to_dict(config)) == config
    steps = config.max_steps()
    assert steps is not None
    assert config.schedule.lr_multiplier(0, steps) <= 1.0
    assert config.warmup_steps() < steps


@pytest.mark.slow
@pytest.mark.parametrize("word", OTHERS)
def test_every_other_preset_composes(word: str) -> None:
    group = word.split("=")[0]
    config: RunConfig = compose("train", [word, *NEEDS.get(word, [])])
    assert from_dict(to_dict(config)) == config
    assert hasattr(config, group) or group in ("experiment", "recipe", "logger", "search")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "search").iterdir()), ids=lambda path: path.stem)
def test_a_space_to_search_has_the_recipe_inside(path: Path) -> None:
    """Every range is of a setting of the run, and holds the value that it has without a search."""
    tree, _ = composed("train", [f"search={path.stem}", *NEEDS.get(f"search={path.stem}", [])])
    assert tree.name == path.stem
    assert tree.hydra.mode.name == "MULTIRUN"
    for name, space in tree.hydra.sweeper.params.items():
        ((override,), usual) = parsed([f"{name}={space}"]), OmegaConf.select(tree, name)
        sweep = override.value()
        if isinstance(sweep, IntervalSweep):
            assert sweep.start < usual < sweep.end, name
        else:
            assert usual in sweep.list, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", sorted(f"{group}={path.stem}" for group in OF_CURATION for path in (CONFIG_FOLDER / group).iterdir())
)
def test_every_preset_of_curation_composes(word: str) -> None:
    register_schemas("curate", CurateConfig)
    source = "sources.a={kind: jsonl, path: x, license: unknown, rules: none}"
    config: CurateConfig = compose("curate", [word, source, "output=x"])
    default: CurateConfig = compose("curate", [source, "output=x"])
    assert config.rules_of("a") == RulesConfig()
    defaults = ("rules=gopher", "licenses=any", "language=off", "duplicates=default", "engine=local")
    assert (config == default) == (word in defaults)


def flat(record: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in record.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("words", [name for name in SETTINGS if name])
def test_a_preset_makes_the_settings_it_always_made(words: str) -> None:
    needs = ["resume=x"] if words == "model=imported" else NEEDS.get(words, [])
    settings = flat(to_dict(compose("train", [*words.split(), *needs])))
    expected = {**SETTINGS[""], **SETTINGS[words]}
    assert settings == {key: value for key, value in expected.items() if value != "absent"}


@pytest.mark.slow
@pytest.mark.parametrize("model", MUON_TUNED)
def test_adamw_has_a_rate_of_its_own_where_the_recipe_was_tuned_for_muon(model: str) -> None:
    with_muon, with_adamw = (compose("train", [f"model={model}", f"optimizer={kind}"]) for kind in ("muon", "adamw"))
    assert with_adamw.optimizer.learning_rate == 1e-3 < with_muon.optimizer.learning_rate
    typed = compose("train", [f"model={model}", "optimizer=adamw", "optimizer.learning_rate=0.002"])
    assert typed.optimizer.learning_rate == 0.002


@pytest.mark.long
def test_every_recipe_made_for_muon_has_a_rate_for_adamw() -> None:
    tuned = [name for name in PUBLISHED if compose("train", [f"model={name}"]).optimizer.kind == "muon"]
    assert sorted(tuned) == sorted(MUON_TUNED)


@pytest.mark.slow
def test_overrides_and_experiments_win_over_a_recipe() -> None:
    config = compose("train", ["model=gpt_nano", "recipe=gpt_small", "batch_size=8"])
    assert (config.model.n_layers, config.optimizer.kind, config.schedule.kind) == (4, "adamw", "cosine")
    assert (config.optimizer.learning_rate, config.schedule.warmup_steps) == (6e-4, 700)
    assert compose("train", ["model=gpt_small", "recipe=gpt_nano"]).optimizer.kind == "muon"
    assert compose("train", ["model=gpt_small", "schedule=wsd"]).schedule.kind == "wsd"
    verse = compose("train", ["experiment=shakespeare", "data.path=x", "optimizer=adamw"])
    assert verse.optimizer.learning_rate == 4e-3  # the experiment's


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "model").iterdir()), ids=lambda path: path.stem)
def test_a_preset_of_a_model_holds_its_shape_alone(path: Path) -> None:
    keys = set(re.findall(r"^([a-z_]+):", path.read_text(encoding="utf8"), re.M))
    assert keys <= {"defaults", "name", "model"}
    assert f"  - override /recipe: {path.stem}\n" in path.read_text(encoding="utf8")


def test_no_preset_names_a_folder_of_one_machine() -> None:
    for path in Path(CONFIG_FOLDER).rglob("*.yaml"):
        assert not re.search(r"[\s\"'](/|~)\w+/", path.read_text(encoding="utf8").replace("override /", "")), path
