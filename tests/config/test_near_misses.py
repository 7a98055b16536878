"""Names of other programs for settings, presets and values lead to ours."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from pretrain.config import near_misses
from pretrain.config.cli import main
from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.config.declared import every_setting
from pretrain.config.preset_folders import presets
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.inference.config import GenerateConfig


def refused(*words: str, script: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        compose(script, list(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr=1e-3", "lr is not a setting. Did you mean optimizer.learning_rate?"),
        ("learning_rate=1e-3", "learning_rate is not a setting. Did you mean optimizer.learning_rate?"),
        ("trainer.lr=1e-3", "trainer.lr is not a setting. Did you mean optimizer.learning_rate?"),
        ("training.learning_rate=1", "training is not a setting. Did you mean optimizer.learning_rate?"),
        ("context_length=512", "context_length is not a setting. Did you mean model.context_length?"),
        ("block_size=512", "block_size is not a setting. Did you mean model.context_length?"),
        ("model.hidden_size=64", "model.hidden_size is not a setting. Did you mean model.d_model?"),
        ("dropout=0.1", "dropout is not a setting. Did you mean model.dropout or lora.dropout?"),
        ("max_epochs=3", "max_epochs is not a setting. Did you mean trainer.max_epochs?"),
        ("num_train_epochs=3", "num_train_epochs is not a setting. Did you mean trainer.max_epochs?"),
        ("warmup_ratio=0.1", "warmup_ratio is not a setting. Did you mean schedule.warmup_fraction?"),
        ("every_n_steps=5", "every_n_steps is not a setting. Did you mean checkpoint.every_n_steps, sample."),
        ("optimizer.momentums=0", "optimizer.momentums is not a setting. Did you mean optimizer.momentum?"),
        ("num_workers=3", "num_workers is not a setting. Did you mean data.prefetch?"),
        ("report_to=wandb", "report_to is not a setting. Did you mean loggers?"),
        (
            "save_top_k=3",
            "save_top_k is not a setting. Did you mean checkpoint.keep? It keeps the newest ones; 0 keeps all, to "
            "choose the best of.",
        ),
        ("checkpoint_path=x", "checkpoint_path is not a setting. Did you mean resume?"),
        ("contextlength=1", "contextlength is not a setting. Did you mean model.context_length?"),
        ("data.text_column=x", "data.text_column is a setting of data=text_files, "),
        ("data.subset=x", "data.subset is a setting of data=hugging_face only. Choose that as well: data=hugging_face"),
        (
            "data.sources.a.weight=1",
            "data.sources is a setting of data=mixture only. Choose that as well: data=mixture",
        ),
        ("schedule=cosine_with_warmup", "schedule=cosine_with_warmup is not a preset. Did you mean cosine?"),
        ("model=gpt2", "model=gpt2 is not a preset. Did you mean gpt_small?"),
        ("model=openai-community/gpt2-xl", "model=openai-community/gpt2-xl is not a preset. Did you mean gpt_xl?"),
        ("model=bert-base-uncased", "model=bert-base-uncased is not a preset. Did you mean bert_base?"),
        ("data.pth=x", "data.pth is not a setting. Did you mean data.path?"),
        ("optimizer=adam", "optimizer=adam is not a preset. Did you mean adamw?"),
        ("objective=mlm", "objective=mlm is not a preset. Did you mean masked?"),
        (
            "trainer.precision=bf16-mixed",
            "trainer.precision=bf16-mixed does not fit: Invalid value 'bf16-mixed'",
        ),
    ],
)
def test_a_word_of_the_fields_leads_to_ours(word: str, message: str) -> None:
    assert refused(word).startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16"), ("trainer.precision=32", "trainer.precision=fp32"),
        ("trainer.precision=16-mixed", "trainer.precision=fp16"),
        ("model.norm=rmsnorm", "model.norm=rms"), ("model.position=RoPE", "model.position=rope"),
        ("data.packing=bestfit", "data.packing=best_fit"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_of_those_offered_leads_to_one(word: str, near: str) -> None:
    assert refused(word).endswith(f"]. Did you mean {near}?")
    assert compose("train", [near])


@pytest.mark.slow
def test_other_scripts_have_words_of_their_own() -> None:
    for script, config_class in (("generate", GenerateConfig), ("eval", EvalConfig), ("export", ExportConfig)):
        register_schemas(script, config_class)
    assert refused("max_tokens=5", script="generate").endswith("Did you mean max_new_tokens?")
    assert refused("ckpt=x", script="eval").endswith("Did you mean checkpoint?")
    for name, task in (("blimp", "minimal_pairs"), ("hellaswag", "multiple_choice"), ("LAMBADA", "cloze")):
        assert refused(f"task={name}", script="eval").endswith(f"Did you mean task={task}?")
    assert refused("out_dir=x", script="export").endswith("Did you mean output or paths.run_dir?")
    assert refused("lr=1", script="export").startswith("lr is not a setting. ")
    register_schemas("curate", CurateConfig)
    assert refused("sources=texts", script="curate") == (
        "sources=texts does not fit: sources has entries by name. "
        "Try 'sources.mine={kind: text_files, path: texts, license: unknown}'."
    )
    assert refused("stages=3").endswith("stages has entries by name. Try 'stages.<name>=...'.")
    assert refused("path=x", script="curate") == (
        "path is not a setting. Did you mean sources? Type a name, a kind and a license with it: "
        "'sources.mine={kind: text_files, path: my_texts/, license: unknown}'"
    )


@pytest.mark.parametrize(
    ("script", "words", "hint"),
    [
        ("train", ["help"], "Try --help"),
        ("train", ["data.path", "x"], "Write data.path=x"),
        ("train", ["data.path"], "Write data.path=<value>"),
        ("train", ["data.path", "=", "x"], "Leave out the blanks around the equals sign: data.path=x"),
        ("train", ["data.path", "=x"], "Leave out the blanks around the equals sign: data.path=x"),
        ("train", ["my/texts"], "Write key=value; did you mean data.path=my/texts?"),
        ("train", ["max_steps"], "Write key=value, such as trainer.max_steps=100."),
        ("generate", ["Hello"], "Write key=value, such as prompt=Hello."),
        ("generate", ["a b"], 'Write key=value; did you mean prompt="a b"?'),
        ("curate", ["."], "Name a source and its license: 'sources.mine={kind: text_files, path: ., license: unknown}' "
         "output=<folder>"),
    ],
)  # fmt: skip
def test_a_word_without_a_value_leads_to_the_setting_it_may_stand_for(script: str, words: list[str], hint: str) -> None:
    for name, config_class in (("generate", GenerateConfig), ("curate", CurateConfig)):
        register_schemas(name, config_class)
    assert refused(*words, script=script) == f"{words[0]!r} is not a setting with a value. {hint}"


def test_the_table_leads_to_what_there_is() -> None:
    scripts = (RunConfig, GenerateConfig, EvalConfig, ExportConfig, CurateConfig)
    there = {name for each in scripts for name in every_setting(each)} | {"schedule"}
    assert set(near_misses._SETTINGS) <= there
    for group, names in near_misses._PRESETS.items():
        assert set(names) <= set(presets(group))
        assert not [word for word, n in Counter(" ".join(names.values()).split()).items() if n > 1]


@pytest.mark.slow
def test_a_path_alone_is_that_of_text_files(tmp_path: Path) -> None:
    config: RunConfig = compose("train", ["data.path=a b", "data.separator=x"])
    assert (config.data.kind, config.data.path, config.data.separator) == ("text_files", "a b", "x")
    assert compose("train", ["data=hugging_face", "data.path=x"]).data.kind == "hugging_face"
    assert refused("data.path=x", "data.template=y").startswith("data.path is a setting of data=text_files, ")
    assert refused("experiment=continue", "data.path=x").startswith("data.path is a setting of ")
    assert refused("data.path=x", "data.n_layer=y").startswith("data.path is a setting of ")
    assert refused("data.path=x", "model.n_layer=3") == "model.n_layer is not a setting. Did you mean model.n_layers?"
    assert compose("train", ["data.path=x", f"resume={tmp_path}"]).data.kind == "text_files"  # resuming refuses it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-dir", "x"], "--config-dir x is no folder. Name one that holds YAML files of your own."),
        (["seed=1", "-cd=x"], "--config-dir x is no folder."),
        (["--config-name", "trian"], "--config-name trian names no file of settings. Did you mean train?"),
        (["--config-name"], "--config-name needs a value after it, such as --config-name my_run."),
        (["--cfg"], "--cfg needs a value after it, such as --cfg job."),
        (
            ["--config-path", "x"],
            "--config-path would do nothing: the presets stay where they are. Add your own folder",
        ),
        (["--run"], "--run would do nothing: a script runs without it. Leave it out."),
        (["--experimental-rerun", "x"], "--experimental-rerun would do nothing: a run goes on by resume=<its folder>."),
        (
            ["--conf", "x"],
            "--conf is no flag of this script; settings have no dashes, and conf is not a setting. ",
        ),
        (
            ["--max-steps", "5"],
            "--max-steps is no flag of this script; settings have no dashes, and max_steps is not a setting. "
            "Did you mean trainer.max_steps? All of them: --help",
        ),
        (
            ["--lr=3"],
            "--lr=3 is no flag of this script; settings have no dashes, and lr is not a setting. "
            "Did you mean optimizer.learning_rate? All of them: --help",
        ),
        (["--data.path=x y"], "--data.path=x y is no flag of this script; settings have no dashes: data.path=x y."),
        (["--seed", "7"], "--seed is no flag of this script; settings have no dashes: seed=7. All of them: --help"),
        (["--model", "--lr"], "--model is no flag of this script; settings have no dashes: model=<value>. All of them"),
        (["-m", "--cfg", "job"], "-m and --cfg cannot go together. Try one of them, such as --cfg job."),
        (["-i", "defaults", "--multirun"], "-i and --multirun cannot go together. Try one of them, such as -i."),
        (["--package", "model"], "--package would do nothing without --cfg. Try --cfg job --package ..."),
        (["--info", "default"], "--info default shows nothing. Did you mean defaults?"),
        (["~logger"], "~logger would delete a setting, and a run needs every setting. Try logger=none."),
        (["~loggers.csv"], "~loggers.csv would delete a setting, and a run needs every setting. Try loggers.csv=null."),
        (["hydra.searchpath=[file:///x]"], "hydra.searchpath=[file:///x] sets something of Hydra's that has no effect"),
        (
            ["-m", "hydra.launcher.n_job=2"],
            "hydra.launcher.n_job is not a setting of Hydra's. All of them: --cfg hydra",
        ),
        (["--"], "-- is no flag of this script; settings are typed key=value. All of them: --help"),
        (["hydra.run.dir=x"], "hydra.run.dir=x sets something of Hydra's that has no effect here. Try paths.run_dir="),
        (
            ["-m", "hydra.sweep.dir=x"],
            "hydra.sweep.dir=x sets something of Hydra's that has no effect here. Try paths.",
        ),
        (
            ["hydra.output_subdir=x"],
            "hydra.output_subdir=x sets something of Hydra's that has no effect here. Try paths",
        ),
        (
            ["-m", "hydra/launcher=slurmit"],
            "hydra/launcher=slurmit is not installed. joblib, submitit_local, submitit_s",
        ),
        (
            ["-m", "seed=1,2", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs=0 is below 1. Try hydra.launcher.n_jobs=",
        ),
        (["-m", "seed=1,2", "hydra.launcher.n_jobs=x"], "hydra.launcher.n_jobs=x does not fit: Value 'x' of type "),
        (
            ["-m", "seed=1,2", "hydra/sweeper=optuna_pruning", "hydra.sweeper.startup_trials=-1"],
            "hydra.sweeper.startup_trials=-1 is below 0. Try hydra.sweeper.startup_trials=8.",
        ),
        (
            ["-m", "seed=1,2", "hydra/sweeper=optuna_pruning", "hydra.sweeper.warmup_fraction=20"],
            "hydra.sweeper.warmup_fraction=20.0 is a share of the run, from 0 to 1. Try hydra.sweeper.warmup_fr",
        ),
        (["-m", "seed=glob(*)"], "seed=glob(*) stands for no value at all. List the values: seed=1,2,3."),
        (["-m", "model=glob(gpt_n*)", "trainer.max_steps=x"], "trainer.max_steps=x does not fit: "),
        (["-m", "seed=range(1"], "the sweep cannot be read: "),
        (
            ["-m", "optimizer.learning_rate=interval(1,2)"],
            "optimizer.learning_rate=interval(1,2) has no end. List the ",
        ),
    ],
)
def test_flags_and_settings_that_would_do_nothing_are_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as stopped:
        main("train", RunConfig, lambda config, words: pytest.fail("it ran"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"ConfigError: {message}")
