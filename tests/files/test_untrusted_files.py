"""Untrusted files are data: nothing in them runs, reads the environment, or leaves the run folder.

Hostile manifests of checkpoints, token stores, tokenizers and Hugging Face folders are in the tests of those.
"""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.cli import main
from pretrain.config.registry import choices, groups
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig, PrepareConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.files.records import sealed, sha256_of
from pretrain.inference.config import GenerateConfig
from pretrain.language_model import LanguageModel
from pretrain.training.config import CheckpointConfig, LoggingConfig, PathsConfig, TrainerConfig
from pretrain.training.train import run

ROOT = Path(__file__).parents[2]
SCRIPTS = (
    EvalConfig, ExportConfig, GenerateConfig, PrepareConfig,
    CheckpointConfig, LoggingConfig, PathsConfig, TrainerConfig,
)  # fmt: skip


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def commit(folder: Path) -> None:
    """Make the manifest match the files, as an attacker with write access would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        path = folder / name
        facts |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


@pytest.fixture
def saved(tiny) -> Path:
    """Return the only checkpoint of a run."""
    report = run(tiny.plan("model=gpt_nano", "trainer.max_steps=1"))
    return open_checkpoint(Path(report.folder)).folder


def test_unpickling_the_bomb_runs_it(tmp_path: Path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))  # noqa: S301  (the others must not do this)
    assert (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "optimizer", "random"])
def test_a_pickle_instead_of_tensors_is_refused(tiny, saved: Path, tmp_path: Path, part: str):
    (saved / f"{part}.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    commit(saved)
    with pytest.raises(CheckpointError, match=rf"{part}\.safetensors (cannot be read|declares a header)"):
        run(tiny.plan("model=gpt_nano", f"resume={saved}", "trainer.max_steps=2"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": "os.system"}, r"the saved settings do not fit this version: Key '_target_'"),
        ({"model": {"kind": "os.system"}}, r"model\.kind=os\.system is unknown"),
        ({"model": {"bias": [1] * 50_001}}, r"the saved settings hold more than 50,000 values, which no run has"),
        ({"name": "${oc.env:HOME}"}, r"the saved settings hold name=\$\{oc\.env:HOME\}; only plain values are read"),
        ({"data": {"kind": "text_files", "path": "${oc.env:HOME}"}}, r"settings hold data\.path=\$\{oc\.env:HOME\}"),
    ],
)
def test_settings_that_name_code_or_the_environment_are_refused(
    tiny, saved: Path, change: dict[str, Any], message: str
):
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["config"] |= change
    (saved / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(CheckpointError, match=message):
        LanguageModel.load(saved)
    with pytest.raises(CheckpointError, match=message):
        tiny.plan("model=gpt_nano", f"resume={saved}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "message"),
    [
        ([1], r"manifest\.json has whole_run=\[1\], which is no mapping of settings\. Take another checkpoint"),
        ({"_target_": "os.system"}, r"the saved settings do not fit this version: Key '_target_'"),
    ],
)
def test_settings_of_all_stages_are_checked_too(saved: Path, whole: object, message: str):
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps(sealed(manifest | {"whole_run": whole})))
    with pytest.raises(CheckpointError, match=rf"{saved.name}: {message}"):
        open_checkpoint(saved).whole_config()


@pytest.mark.slow
def test_a_name_in_a_manifest_moves_no_cursor(saved: Path, monkeypatch, capsys):
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["\n\x1b[31mred"] = {"bytes": 1, "sha256": "0" * 64}
    (saved / "manifest.json").write_text(json.dumps(sealed(manifest)))
    monkeypatch.setattr(sys, "argv", ["generate.py", f"checkpoint={saved}"])
    with pytest.raises(SystemExit) as ended:
        main("generate", GenerateConfig, lambda config, words: LanguageModel.load(config.checkpoint))
    assert ended.value.code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line == rf"CheckpointError: {saved} is not a usable checkpoint: \n\x1b[31mred is missing."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_layers", 10**4, r"describe a model of \d+,\d{3},\d{3} parameters, and its files hold \d+,\d{3}"),
        ("d_ff", 2**24, "describe a model of .* parameters"),
        ("n_layers", 10**9, r"model\.n_layers=1000000000 is above 10000"),
        ("d_model", 10**30, r"model\.d_model=10{30} is above"),
        ("n_layers", 10**400, r"settings do not fit this version|model\.n_layers=10{20,}"),
        ("n_layers", "many", "the saved settings do not fit this version: Value 'many'"),
        ("n_layers", [[]], "the saved settings do not fit this version"),
        ("rope_scaling", 3, "the saved settings do not fit this version"),
        ("norm_eps", {}, "the saved settings do not fit this version"),
    ],
)
def test_settings_of_another_model_are_refused_before_it_is_built(
    tiny, saved: Path, key: str, value: Any, message: str
):
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["config"]["model"][key] = value
    (saved / "manifest.json").write_text(json.dumps(sealed(manifest)))
    for use in (LanguageModel.load, lambda path: tiny.plan("model=gpt_nano", f"resume={path}"), checked_inspection):
        with pytest.raises(CheckpointError, match=message) as refusal:
            use(saved)
        assert len(str(refusal.value)) < 1000


def checked_inspection(saved: Path) -> None:
    list(rows_of_step(saved.parent.parent, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "!!python/object/apply:pathlib.Path.touch [{marker}]",
            r"config\.yaml cannot be read: it is not valid YAML: could not determine",
        ),
        ("[1, 2]", r"config\.yaml holds no settings"),
        ("a: *b", r"config\.yaml cannot be read"),
        ("[" * 100_000, r"config\.yaml cannot be read"),
    ],
    ids=["object", "list", "alias", "deep"],
)
def test_a_run_folders_settings_run_nothing(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.yaml").write_text(text.replace("{marker}", str(tmp_path / "marker")))
    with pytest.raises(CheckpointError, match=message):
        list(rows_of_step(tmp_path, 1))
    assert not (tmp_path / "marker").exists()


@pytest.mark.long
def test_names_of_documents_are_escaped_on_a_terminal(tiny, capfd: pytest.CaptureFixture[str]):
    corpus = tiny.folder / "names"
    corpus.mkdir()
    (corpus / "a\x1b[31mred.txt").write_text("the \x1b]0;title\x07 quick " * 40)
    words = ["model=gpt_nano", f"data.path={corpus}", "data.validation_fraction=0", "trainer.max_steps=1"]
    report = run(tiny.plan(*words))
    capfd.readouterr()
    found = subprocess.run(
        [sys.executable, str(ROOT / "src" / "prepare.py"), "inspect", f"run={report.folder}", "step=1"],
        cwd=tiny.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\\x1b[31mred.txt" in found.stdout
    assert "\x1b" not in found.stdout + report.sample.replace("\x1b", "") + str(report)


@pytest.mark.slow
def test_an_environment_that_lets_torch_unpickle_is_refused(monkeypatch: pytest.MonkeyPatch):
    found = subprocess.run(
        [sys.executable, str(ROOT / "src" / "train.py")],
        capture_output=True, text=True, check=False, env={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    )  # fmt: skip
    assert found.returncode == 2
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 lets files run code as torch loads them. Unset it" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "a/${oc.env:HOME}/b", "${oc.decode:${oc.env:HOME}}", "${ oc.env:HOME}"]
)
def test_nothing_of_the_environment_is_saved_with_a_model(tiny, value: str):
    with pytest.raises(ConfigError, match=r"name=.* is taken from the environment, .*: name=\"\$NAME\"") as refusal:
        tiny.config("model=gpt_nano", f"name='{value}'")
    assert str(Path.home()) not in str(refusal.value)


def test_no_setting_holds_a_secret():
    """So saved settings need no masking; hubs read their keys from their own file or variable."""
    secret = re.compile(r"(^|_)(api_?key|key|secret|passw\w*|credentials?|token)$")
    classes = {*(choice for group in groups() for choice in choices(group).values()), RunConfig, *SCRIPTS}
    names = {field.name for kind in classes for field in fields(kind)}
    assert len(names) > 100
    assert [name for name in names if secret.search(name)] == ["mask_token"]  # of a vocabulary
