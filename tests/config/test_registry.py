"""Classes of the user's own: registration, plug-ins, and saved runs that need them."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pretrain.config import registry
from pretrain.config.registry import choices, load_plugins, register, typed_tasks
from pretrain.config.serialize import from_dict
from pretrain.errors import ConfigError
from pretrain.evaluation.task import TaskConfig
from pretrain.models.config import ModelConfig


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


@dataclass
class LineConfig(ModelConfig):
    kind: str = "line"


@dataclass
class NamelessConfig(ModelConfig):
    pass


@dataclass
class TransformerOfMine(ModelConfig):
    kind: str = "transformer"


class Undecorated(ModelConfig):
    kind: str = "undecorated"


@pytest.mark.parametrize(
    ("group", "config_class", "message"),
    [
        ("modle", LineConfig, r"there is no group 'modle' to register LineConfig in\. Did you mean model\?"),
        ("data", LineConfig, r"LineConfig is no dataclass that derives from DataConfig.*LineConfig\(DataConfig\)"),
        (
            "model",
            Undecorated,
            r"Undecorated is no dataclass that derives .*@dataclass class Undecorated",
        ),
        ("model", NamelessConfig, r'NamelessConfig has no kind of its own.*kind: str = "my_model"'),
        ("model", TransformerOfMine, r"TransformerOfMine is of kind 'transformer', as TransformerConfig is already"),
    ],
)
def test_what_no_run_could_use_is_not_registered(group: str, config_class: type, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register(group, config_class)


def test_a_class_may_be_registered_twice_and_its_kind_by_no_other() -> None:
    register("model", LineConfig)
    register("model", LineConfig)  # as where a script is imported again
    assert choices("model")["line"] is LineConfig
    other = dataclass(type("OtherConfig", (LineConfig,), {}))
    with pytest.raises(ConfigError, match="OtherConfig is of kind 'line', as LineConfig is already"):
        register("model", other)


def test_plugins_are_modules_that_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    (tmp_path / "wrong_plugin.py").write_text("from pretrain.config.registry import register\nregister('x', int)\n")
    for name, message in {
        "no_such_plugin": r"plugins=\[no_such_plugin\] cannot be imported: ModuleNotFoundError.*Install it",
        "broken_plugin": r"plugins=\[broken_plugin\] cannot be imported: ZeroDivisionError",
        "wrong_plugin": r"there is no group 'x' to register int in",
        "my-plugin/x.py": r"plugins='my-plugin/x\.py' is not the name of a module.*plugins=\[my_package\]",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_plugins([name])


class _Point:
    name, value = "line", "line_plugin"

    def __init__(self, loaded: object) -> None:
        self.loaded = loaded

    def load(self) -> object:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_installed_plugins_are_functions_or_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    registry._load_plugins.cache_clear()
    points = [_Point(lambda: register("model", LineConfig)), _Point(sys)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert choices("model")["line"] is LineConfig
    registry._load_plugins.cache_clear()
    points[:] = [_Point(ImportError("no module torchx"))]
    with pytest.raises(ConfigError, match="plug-in line=line_plugin cannot be imported: ImportError: no module"):
        choices("model")
    monkeypatch.undo()
    registry._load_plugins.cache_clear()


def test_a_saved_run_names_its_plugin_and_nothing_of_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hostile_plugin.py").write_text("raise SystemExit('imported')\n")
    saved = {"model": {"kind": "line"}, "plugins": ["hostile_plugin", 3]}
    with pytest.raises(ConfigError, match=r"model\.kind=line is unknown here.*again: plugins=\[hostile_plugin\]"):
        from_dict(saved)
    with pytest.raises(ConfigError, match=r"again: plugins=\[<its package>\]"):
        from_dict({"model": {"kind": "line"}, "plugins": "os"})
    assert "hostile_plugin" not in sys.modules


@dataclass
class LettersConfig(TaskConfig):
    kind: str = "letters"
    letters: list[str] = field(default_factory=list)
    most: int = 3


def test_tasks_are_kinds_or_mappings() -> None:
    register("task", LettersConfig)
    assert typed_tasks(["letters", {"kind": "letters", "letters": ["a"]}]) == [
        LettersConfig(),
        LettersConfig(letters=["a"]),
    ]
    with pytest.raises(ConfigError, match=r"tasks=\[leters\] is not registered\. Did you mean letters\?"):
        typed_tasks(["leters"])
    message = (
        r"=few in tasks=\[\{kind: letters, \.\.\.\}\] does not fit: \w+ .*\. Leave it out, for the task's own value\."
    )
    for name in ("most", "letters"):
        with pytest.raises(ConfigError, match=f"^{name}{message}"):
            typed_tasks([{"kind": "letters", name: "few"}])
    with pytest.raises(TypeError, match=r"task 'letters' has no score\(\)"):
        LettersConfig().score(None)  # type: ignore[arg-type]
