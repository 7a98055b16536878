"""Settings under the names of an earlier version are read as the current ones, with a notice."""

import sys

import pytest

from pretrain.config.cli import main
from pretrain.config.compose import compose
from pretrain.config.declared import every_setting
from pretrain.config.renamed import RENAMED, notes_on, with_current_name
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.errors import ConfigError

OVERRIDES = {
    "model.tied": "false", "model.norm_place": "post", "model.head_width": "64", "model.window": "8",
    "model.global_every": "2", "objective.mask_share": "0.7", "objective.random_share": "0.2",
    "schedule.final_share": "0.3", "schedule.decay_share": "0.6", "parallel.reduce_once_a_step": "true",
    "data.num_workers": "2", "logger.norms": "true", "logger.ledger": "true",
    "logger.tensorboard": "false", "logger.csv": "true",
}  # fmt: skip
BASE = ["model=bert_nano", "objective=masked", "schedule=wsd"]


@pytest.mark.slow
def test_every_old_name_on_the_command_line_is_the_new_setting(monkeypatch, capsys):
    assert OVERRIDES.keys() == RENAMED.keys()
    old = [f"{name}={value}" for name, value in OVERRIDES.items()]
    new = [f"{RENAMED[name]}={value}" for name, value in OVERRIDES.items()]
    found: list[RunConfig] = []
    monkeypatch.setattr(sys, "argv", ["train.py", *BASE, *old])
    main("train", RunConfig, lambda config, words: found.append(config))
    assert to_dict(found[0]) == to_dict(compose("train", [*BASE, *new]))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(OVERRIDES)
    assert lines[0] == "model.tied is now called model.tie_embeddings; the old name is read for one version more."
    assert notes_on(new) == []
    assert with_current_name("weights=int8") == "dtype=int8"  # of generate.py and eval.py
    assert with_current_name("weights=ema") == "weights=ema"  # the setting that has the name now
    assert notes_on(["weights=ema"]) == []
    assert with_current_name("data=labelled") == "data=labeled"
    assert notes_on(["data=labelled"]) == [
        "data=labelled is now called data=labeled; the old name is read for one version more."
    ]
    assert with_current_name("++model.tied=true") == "++model.tie_embeddings=true"


@pytest.mark.slow
def test_saved_settings_with_old_names_are_those_of_today():
    config = compose("train", [*BASE, *(f"{RENAMED[name]}={value}" for name, value in OVERRIDES.items())])
    saved = to_dict(config)
    older = {group: dict(values) if isinstance(values, dict) else values for group, values in saved.items()}
    for old, new in RENAMED.items():
        group, name = old.split(".")
        new_group, new_name = new.split(".")
        older.setdefault(group, {})[name] = older[new_group].pop(new_name, False)
    assert older["logger"] == {"norms": True, "ledger": True, "tensorboard": False, "csv": {"kind": "csv"}}
    older["logger"]["csv"] = True  # as it was written then
    before = str(older)
    assert to_dict(from_dict(older)) == saved
    assert str(older) == before
    older["model"]["tyed"] = True
    with pytest.raises(ConfigError, match="do not fit this version"):
        from_dict(older)


def test_every_new_name_is_a_setting():
    entries = {"loggers.tensorboard", "loggers.csv"}  # whose names are the user's
    assert set(RENAMED.values()) - entries <= set(every_setting(RunConfig))
    assert not set(RENAMED) & set(every_setting(RunConfig))


def test_data_of_a_kind_that_had_another_name_is_read() -> None:
    saved = to_dict(compose("train", ["data=labeled", "data.path=x", "objective=classify", "objective.labels=[a,b]"]))
    older = saved | {"data": saved["data"] | {"kind": "labelled"}}
    assert to_dict(from_dict(older)) == saved
