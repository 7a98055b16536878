"""A setting is described once: every one has help, and its bounds hold typed, saved and from Python."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig, ExplainConfig, VerifyConfig
from pretrain.config.declared import alternatives, type_hints
from pretrain.config.registry import choices, groups
from pretrain.config.run import MAX_SEED, MAX_TOKENS_PER_STEP, RunConfig
from pretrain.config.scripts import ExportConfig, InspectConfig, PrepareConfig, ReportConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.config.setting import Description, Settings, check_bounds, description, setting
from pretrain.config.settings_help import settings_page
from pretrain.data.config import MixtureSource
from pretrain.doctor.config import DoctorConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.inference.config import MAX_SAMPLING_SEED, GenerateConfig
from pretrain.inference.sampling import Sampler, Sampling
from pretrain.launch.run_folder import saved_settings
from pretrain.planning.config import PlanConfig
from pretrain.training.train import run

SCRIPTS = (
    RunConfig, PlanConfig, DoctorConfig, GenerateConfig, EvalConfig, ExportConfig, InspectConfig, PrepareConfig,
    ReportConfig, CurateConfig, VerifyConfig, ExplainConfig,
)  # fmt: skip
WORDS = ["data=text_files", "data.path=x", "trainer.max_steps=1", "trainer.accelerator=cpu"]
FITTING = {  # settings that another rule asks for beside a size
    "model.n_heads": ["model.head_dim=64"],
    "model.d_model": ["model.head_dim=64"],
    "model.head_dim": ["model.position=learned"],
    "trainer.devices": ["trainer.strategy=ddp"],
    "trainer.num_nodes": ["trainer.strategy=ddp"],
}


def _classes(config_class: Any) -> Iterator[Any]:
    """Yield a class of settings and all below it, of every kind."""
    yield config_class
    for name, hint in type_hints(config_class).items():
        inner = choices(name).values() if name in groups() else filter(is_dataclass, alternatives(hint))
        for each in inner:
            yield from _classes(each)


CLASSES = [*dict.fromkeys(each for script in SCRIPTS for each in _classes(script)), MixtureSource]
BOUNDED = [
    (each, f.name)
    for each in CLASSES
    for f in fields(each)
    if description(each, f.name).bounds and each is not Sampling
]
LARGEST = [
    (f"{each.prefix}{f.name}", int(text.bounds.high), text.example)
    for each in _classes(RunConfig)
    for f in fields(each)
    if (text := description(each, f.name)).bounds and text.bounds.whole and 1 < text.bounds.high <= 1 << 24
]


@pytest.fixture(autouse=True)
def schemas() -> None:
    register_schemas("plan", PlanConfig)
    register_schemas("generate", GenerateConfig)


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda each: each.__name__)
def test_every_setting_has_one_line_of_help(config_class: Any) -> None:
    hints = type_hints(config_class)
    for each in fields(config_class):
        if (
            each.name in hints
            and each.name not in groups()
            and not any(map(is_dataclass, alternatives(hints[each.name])))
        ):
            about = description(config_class, each.name).about
            assert about.endswith("."), each.name
            assert len(about) <= 120, each.name


@pytest.mark.parametrize(("config_class", "name"), BOUNDED, ids=lambda each: getattr(each, "__name__", each))
def test_bounds_fit_the_type_and_the_example(config_class: Any, name: str) -> None:
    text = description(config_class, name)
    assert text.bounds is not None
    assert text.bounds.whole == (float not in alternatives(type_hints(config_class)[name]))
    assert text.example in text.bounds or text.example == text.also


@pytest.mark.parametrize(("config_class", "name"), BOUNDED, ids=lambda each: getattr(each, "__name__", each))
def test_a_number_below_the_bounds_is_refused_by_its_full_name(config_class: Any, name: str) -> None:
    bounds = description(config_class, name).bounds
    assert bounds is not None
    settings = object.__new__(config_class)
    for each in fields(config_class):
        setattr(settings, each.name, None)
    setattr(settings, name, bounds.low if bounds.low_open else bounds.low - 3)
    with pytest.raises(
        ConfigError, match=rf"^{config_class.prefix}{name}=\S+ is .*\. Try {config_class.prefix}{name}=\S"
    ):
        check_bounds(settings)


@dataclass
class _Example(Settings):
    prefix: ClassVar[str] = "example."
    count: int = setting(4, "A count.", bounds="[2, 8]", also=-1)
    size: int | None = setting(None, "A size.", bounds="[0, inf)", example=5, hint="or null for none")
    rate: float = setting(0.1, "A rate.", bounds="(0.0, inf)")
    minutes: float = setting(1.0, "A time.", bounds="[0.5, inf)", unit="minutes")
    open_share: float = setting(0.5, "A share.", bounds="(0.0, 1.0)")
    low_share: float = setting(0.5, "A share.", bounds="[0.0, 1.0)")
    high_share: float = setting(0.5, "A share.", bounds="(0.0, 1.0]")
    share: float = setting(0.5, "A share.", bounds="[0.0, 1.0]")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("count", 1, "is below 2. Try example.count=4."),
        ("count", 9, "is above 8, the largest that is allowed. Try example.count=4."),
        ("count", 2.5, "is not a whole number. Try example.count=4."),
        ("count", True, "is not a whole number. Try example.count=4."),
        ("size", -1, "is negative. Try example.size=5, or null for none."),
        ("rate", 0.0, "is not a number above 0. Try example.rate=0.1."),
        ("rate", float("inf"), "is not a number above 0. Try example.rate=0.1."),
        ("rate", float("nan"), "is not a number above 0. Try example.rate=0.1."),
        ("rate", "fast", "is not a number above 0. Try example.rate=0.1."),
        ("minutes", 0.1, "is not a number of minutes from 0.5 up. Try example.minutes=1."),
        ("open_share", 1.0, "is not a share between 0 and 1. Try example.open_share=0.5."),
        ("low_share", 1.0, "is not a share from 0 up to but not including 1. Try example.low_share=0.5."),
        ("high_share", 0.0, "is not a share above 0 and up to 1. Try example.high_share=0.5."),
        ("share", -0.1, "is not a share from 0 to 1. Try example.share=0.5."),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_the_rule(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        _Example(**{name: value})
    assert str(error.value) == f"example.{name}={value} {rule}"


def test_the_ends_of_closed_bounds_and_the_number_beside_them_are_right() -> None:
    for fitting in ({"count": 2}, {"count": 8}, {"count": -1}, {"size": None}, {"size": np.int64(3)}, {"share": 1}):
        _Example(**fitting)
    assert description(_Example, "count").range() == "2 to 8 or -1"
    assert description(_Example, "minutes").range() == "minutes, 0.5 or more"
    assert description(_Example, "high_share").range() == "above 0 to 1"
    assert Description().range() == ""
    with pytest.raises(ValueError, match="is not an interval"):
        setting(1, "A count.", bounds="1 or more")


@pytest.mark.parametrize(("key", "most", "usual"), LARGEST)
def test_a_size_that_no_run_needs_is_refused_typed_or_saved(key: str, most: int, usual: int, tmp_path: Path) -> None:
    message = rf"{key}={most + 1} is above {most}, the largest that is allowed\. Try {key}={usual}[.,]"
    fitting = FITTING.get(key, [])
    with pytest.raises(ConfigError, match=message):
        compose("train", [*WORDS, *fitting, f"{key}={most + 1}"])
    saved = to_dict(compose("train", [*WORDS, *fitting]))
    part = saved
    for name in key.split(".")[:-1]:
        part = part[name]
    part[key.rpartition(".")[2]] = most + 1
    with pytest.raises(ConfigError, match=message):  # a checkpoint's manifest
        from_dict(saved)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(CheckpointError, match=rf"config\.yaml: {message}"):  # what plan.py compares
        saved_settings(tmp_path)
    with pytest.raises(CheckpointError, match=rf"config\.yaml: {message}"):
        next(rows_of_step(tmp_path, 1))


def test_a_step_of_too_many_tokens_is_refused() -> None:
    rows, length = 1 << 15, 1 << 14
    message = (
        rf"batch_size={rows} rows of model.context_length={length} are {rows * length} tokens .* {MAX_TOKENS_PER_STEP}"
    )
    with pytest.raises(ConfigError, match=message):
        compose("train", [*WORDS, f"batch_size={rows}", f"model.context_length={length}"])


@pytest.mark.parametrize("script", ["train", "plan", "generate"])
def test_seeds_are_right_to_the_end_of_their_range(script: str) -> None:
    most = MAX_SAMPLING_SEED if script == "generate" else MAX_SEED
    assert compose(script, [f"seed={most}"]).seed == most
    with pytest.raises(ConfigError, match=rf"seed={most + 1} is above {most}, .* Try seed=0\."):
        compose(script, [f"seed={most + 1}"])
    with pytest.raises(ConfigError, match=r"seed=-1 is negative\. Try seed=0\."):
        compose(script, ["seed=-1"])


def test_sampling_from_python_has_the_bounds_of_the_command_line() -> None:
    for seed in (0, MAX_SEED + 1, MAX_SAMPLING_SEED, None, np.int64(3)):
        Sampler(Sampling(seed=seed))
    for seed in (1.5, "7", True, float("nan")):
        with pytest.raises(ConfigError, match=r"seed=.* is not a whole number\. Try seed=0\."):
            Sampling(seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"temperature=hot is not a number from 0 up\. Try temperature=0\.8, or 0"):
        Sampling(temperature="hot")  # type: ignore[arg-type]


def test_a_run_with_the_largest_seed_trains(tiny: Any) -> None:
    report = run(tiny.plan(f"seed={MAX_SEED}", "trainer.max_steps=1", "trainer.val_check_interval=100"))
    assert (Path(report.folder) / "report.json").exists()


def test_the_page_of_settings_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), "docs/reference/settings.md is old: make settings"
