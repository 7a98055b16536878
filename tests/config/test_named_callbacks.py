"""Callbacks and loggers are entries that the user names, by the mechanism of a mixture's sources."""

import socket
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from pretrain.config import registry
from pretrain.config.compose import compose
from pretrain.config.renamed import with_current_name
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.errors import ConfigError
from pretrain.training.callback_config import CallbackConfig
from pretrain.training.logger_config import check_server


def composed(*words: str) -> RunConfig:
    found: RunConfig = compose("train", [with_current_name(word) for word in words])
    assert from_dict(to_dict(found)) == found
    return found


def kinds(entries: dict[str, Any]) -> dict[str, str]:
    return {name: entry.kind for name, entry in entries.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "loggers"),
    [
        ((), "csv tensorboard"),
        (("logger=none",), ""),
        (("logger=csv",), "csv"),
        (("logger=wandb",), "wandb"),
        (("logger=[tensorboard,wandb,mlflow]",), "mlflow tensorboard wandb"),
        (("logger=[all,comet]",), "comet csv tensorboard"),
        (("logger.tensorboard=false",), "csv"),  # an earlier version's
        (("logger=none", "logger.csv=true"), "csv"),
        (("loggers.csv=null",), "tensorboard"),
        (("loggers.wandb.project=mine",), "csv tensorboard wandb"),  # the kind that the name is
        (("logger=csv", "loggers.second={kind: mlflow, experiment: b}"), "csv second"),
    ],
)
def test_presets_and_words_make_loggers(words: tuple[str, ...], loggers: str) -> None:
    assert " ".join(composed(*words).loggers) == loggers


@pytest.mark.slow
def test_presets_and_words_make_callbacks() -> None:
    found = composed("callbacks=[early_stopping,lr_monitor]", "callbacks.early_stopping.patience=1e1").callbacks
    assert kinds(found) == {"early_stopping": "early_stopping", "lr_monitor": "lr_monitor"}
    assert found["early_stopping"].patience == 10
    named = composed("callbacks.a.class_path=my.Own", "callbacks.a.init_args.rate=0.5", "callbacks.b._target_=my.B",
                     "callbacks.b.rate=2").callbacks  # fmt: skip
    assert (named["a"].class_path, named["a"].init_args) == ("my.Own", {"rate": 0.5})
    assert (named["b"].class_path, named["b"].init_args) == ("my.B", {"rate": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("callbacks=early_stop", "callbacks=early_stop is not a preset. Did you mean early_stopping?"),
        ("callbacks.x.kind=early_stoping", "callbacks.x.kind=early_stoping is unknown. Did you mean early_stopping?"),
        ("callbacks.x.patience=3", "callbacks.x.kind has no value, and needs one: class_path, device_stats, "),
        ("callbacks.x=3", "callbacks.x=3 is not a mapping of settings. Try 'callbacks.x={kind: early_stopping, "),
        ("callbacks.early_stopping.patience=0", "callbacks.early_stopping.patience=0 is below 1. Try callbacks.early_"),
        (
            "callbacks.early_stopping.patiens=1",
            "patiens is not a setting. Did you mean callbacks.early_stopping.patien",
        ),
        ("callbacks.early_stopping.patience=x", "callbacks.early_stopping.patience=x does not fit: Value 'x' of type"),
        ("callbacks.x.kind=class_path", "callbacks.x.class_path has no value, and needs one."),
        ("callbacks.x.class_path=os", "callbacks.x.class_path=os is not the path of a class. Try callbacks.x.class_pa"),
        ("callbacks.x={class_path: a.B, init_args: {api_key: 3}}", "callbacks.x.init_args.api_key looks like a secret"),
        ("loggers.wandb.api_key=3", "loggers.wandb.api_key is not a setting."),
        ("loggers.mlflow.tracking_uri='http://me:word@host'", "tracking_uri holds an address with a password"),
        (
            "loggers.a.kind=csv",
            "loggers.csv.kind=csv would write the files of loggers.a. Leave one of them out: logger",
        ),
        ("loggers=3", "loggers=3 does not fit: loggers has entries by name. Try 'loggers.<name>=...'"),
        ("callbacks.x={class_path: a.B, init_args: {a: '\\${oc.env:HOME}'}}", "refers to something else"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_value_that_works(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(word)
    assert message in str(error.value)
    assert "word@" not in str(error.value)


@dataclass
class EchoConfig(CallbackConfig):
    """A callback of a plug-in."""

    kind: str = "echo"
    words: int = 2


@pytest.mark.slow
def test_a_plugin_adds_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry.register("callback", EchoConfig)
    assert composed("callbacks.echo.words=5").callbacks["echo"] == EchoConfig(words=5)


@pytest.mark.slow
def test_settings_name_a_class_and_import_nothing() -> None:
    before = set(sys.modules)
    composed("callbacks.x.class_path=this.Zen", "loggers.y.class_path=antigravity.Fly")
    assert not {"this", "antigravity"} & (set(sys.modules) - before)


def test_a_server_that_does_not_answer_is_told_before_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        check_server("loggers.mlflow.tracking_uri", address)
    with pytest.raises(ConfigError, match=rf"loggers\.mlflow\.tracking_uri={address}: no server answers there .*Start"):
        check_server("loggers.mlflow.tracking_uri", address)
    check_server("loggers.mlflow.tracking_uri", "sqlite:///mlflow.db")
