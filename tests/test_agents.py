"""AGENTS.md is true: its commands are accepted, its keys, codes, targets and paths exist."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pretrain import errors
from pretrain.__main__ import COMMANDS
from pretrain.config.command_line import as_list, parse
from pretrain.config.compose import composed, register_schemas, sweep_words
from pretrain.config.curate import CurateConfig, ExplainConfig, ForgetConfig, VerifyConfig
from pretrain.config.overrides import first_values, quote
from pretrain.config.run import RunConfig
from pretrain.config.scripts import (
    AverageConfig,
    CompareConfig,
    ExportConfig,
    InspectConfig,
    PrepareConfig,
    ReportConfig,
)
from pretrain.doctor.config import DoctorConfig
from pretrain.evaluation.config import EvalConfig
from pretrain.inference.config import GenerateConfig
from pretrain.planning.config import PlanConfig, ScaleConfig
from pretrain.training.report import Report

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "AGENTS.md").read_text(encoding="utf8")
TYPED = [line for block in re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
CONFIGS: dict[str, Any] = {
    "train": RunConfig, "prepare": PrepareConfig, "inspect": InspectConfig, "generate": GenerateConfig,
    "average": AverageConfig, "compare": CompareConfig, "eval": EvalConfig,
    "export": ExportConfig, "plan": PlanConfig, "scale": ScaleConfig, "report": ReportConfig, "doctor": DoctorConfig,
    "curate": CurateConfig, "verify": VerifyConfig, "explain": ExplainConfig, "forget": ForgetConfig,
}  # fmt: skip


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    text = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_command_is_shown() -> None:
    assert {line.split()[1] for line in TYPED} == set(COMMANDS)
    assert {line.split()[0] for line in TYPED} == {"pretrain"}


@pytest.mark.parametrize("line", [line for line in TYPED if " init " not in line])
def test_its_commands_are_accepted(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    register_schemas(name, CONFIGS[name])
    words = as_list(words, "runs" if name == "compare" else "")
    given = parse([quote(word, "prompt") for word in words])
    if given.multirun:
        given.overrides = first_values(sweep_words(name, given.overrides))
    composed(name, [word for word in given.overrides if not word.startswith("resume=")])


def test_the_table_of_the_report_has_its_keys() -> None:
    assert [row[0].strip("`") for row in rows("report.json")] == [field.name for field in fields(Report)]


def test_exit_codes_are_those_of_the_errors() -> None:
    codes = {row[1].strip("`"): row[0] for row in rows("Exit codes") if row[1]}
    assert codes.pop("Interrupted") == "129, 130, 143"
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert codes == {kind.__name__: str(kind.exit_code) for kind in kinds if kind.exit_code != 1}


def test_its_paths_and_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([\w-]+)`", PAGE)) <= targets
    for path in re.findall(r"(?:configs|docs|examples|src)/[\w/.]*|[A-Z]+\.md", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["exit-codes", "report"])
def test_a_page_of_the_reference_says_the_same(name: str) -> None:
    (here,) = re.findall(rf"<!-- {name} -->.*<!-- /{name} -->", PAGE, re.S)
    assert here in (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf8")
