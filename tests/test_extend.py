"""The examples of plug-ins, a callback and a logger: each trains, resumes, and generates or is scored."""

import json
import re
import sys
from pathlib import Path

import pytest

from pretrain.config import registry
from pretrain.config.compose import compose, register_schemas
from pretrain.config.registry import load_plugins
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score
from pretrain.interop.export import export_model
from pretrain.language_model import LanguageModel
from pretrain.launch.run_plan import resolve_run
from pretrain.training.config import PathsConfig
from pretrain.training.train import run

EXAMPLES = Path(__file__).parents[1] / "examples" / "extend"
PLUGINS = ["my_model", "my_objective", "my_data", "my_tokenizer", "my_optimizer", "my_schedule", "my_task"]
NANO = ["model=gpt_nano", "model.n_layers=2", "model.d_model=16", "model.n_heads=2", "model.context_length=32"]
CONVOLUTION = [
    "model=convolution", "model.n_layers=2", "model.width=16", "model.context_length=32", "data.document_mask=false"
]  # fmt: skip


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the examples as `plugins=[...]` does, for one test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(registry, "_REGISTERED", {})
    for name in PLUGINS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    load_plugins(PLUGINS)
    register_schemas("train", RunConfig)


def paths_below(folder: Path) -> PathsConfig:
    return PathsConfig(cache_dir=str(folder / "cache"), logs_dir=str(folder / "logs"))


def trained(folder: Path, *words: str) -> Path:
    """Return the folder of a run of 6 steps that was resumed after 3."""
    common = [
        "batch_size=4", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", "trainer.precision=fp32",
        "trainer.accelerator=cpu", "trainer.val_check_interval=3", "checkpoint.every_n_steps=3",
        "schedule.warmup_steps=2", "sample.max_new_tokens=4", f"paths.cache_dir={folder / 'cache'}",
        f"paths.logs_dir={folder / 'logs'}",
    ]  # fmt: skip
    typed = [*words, *common, "trainer.max_steps=3", f"plugins=[{','.join(PLUGINS)}]"]
    first = resolve_run(compose("train", typed), typed)
    run(first)
    again = [*words, *common, "trainer.max_steps=6", f"resume={first.folder}"]
    resumed = resolve_run(compose("train", again), again)
    assert resumed.start == 3
    assert (first.config.plugins, resumed.config.plugins) == (PLUGINS, [])  # those of a saved run are not taken over
    report = run(resumed)
    assert report.steps == 6
    assert report.validation["val/loss"] < 10
    return first.folder


@pytest.mark.slow
def test_a_plain_module_trains_and_generates_with_own_data_tokenizer_optimizer_and_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["data=sums", "data.count=400", "tokenizer=characters", "optimizer=lion", "schedule=inverse_root"]
    folder = trained(tmp_path, *CONVOLUTION, *own, "optimizer.learning_rate=0.001")
    model = LanguageModel.load(folder)
    assert type(model.model).__name__ == "Convolution"
    assert model.generate("12 + 30", max_new_tokens=5, temperature=0.0).startswith("12 + 30")
    one, two = model.generate(["1", "12 + 3"], max_new_tokens=5, temperature=0.0)  # unlike lengths, in one batch
    assert (one, two) == tuple(model.generate(text, max_new_tokens=5, temperature=0.0) for text in ("1", "12 + 3"))
    config = EvalConfig(checkpoint=str(folder), paths=paths_below(tmp_path))
    assert score(config, folder)["bits_per_byte"] > 0
    with pytest.raises(ConfigError, match=r"model\.kind=convolution is not a transformer, and only .* is exported"):
        export_model(ExportConfig(output=str(tmp_path / "out")), folder)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    with pytest.raises(CheckpointError, match=r"is unknown here.* Name it again: plugins=\[<its package>\]"):
        LanguageModel.load(folder)  # its last start named no plug-in


@pytest.mark.slow
def test_an_own_objective_trains_and_own_tasks_score(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["data=text_files", f"data.path={corpus}", "tokenizer=bytes"]
    classes = ["callbacks.lowest.class_path=my_callback.LowestLoss", "loggers.lines.class_path=my_logger.JSONLines"]
    more = [f"loggers.lines.init_args.path={tmp_path / 'figures.jsonl'}", "callbacks.lowest.init_args.digits=2"]
    folder = trained(tmp_path, *NANO, *text, "objective=second_half", *classes, *more)
    lowest = [float(number) for number in re.findall(r"lowest validation loss: (\d+\.\d\d)\n", capsys.readouterr().out)]
    assert len(lowest) == 2
    assert lowest[1] <= lowest[0]  # resumed, it knows what was before
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert round(min(line["val/loss"] for line in lines if "val/loss" in line), 2) == lowest[1]
    for tasks in (["right_sums"], [{"kind": "right_sums", "count": 20}]):
        config = EvalConfig(checkpoint=str(folder), tasks=tasks, paths=paths_below(tmp_path))
        assert 0 <= score(config, folder)["right_sums/accuracy"] <= 1
    with pytest.raises(ConfigError, match=r"tasks=\[sums\] is not registered.*plugins=\[my_package\]"):
        score(EvalConfig(tasks=["sums"]), folder)
    with pytest.raises(ConfigError, match=r"cuont is not a setting of the task right_sums\. Did you mean count\?"):
        score(EvalConfig(tasks=[{"kind": "right_sums", "cuont": 2}]), folder)
    with pytest.raises(ConfigError, match="does not fit"):
        score(EvalConfig(tasks=[{"kind": "right_sums", "count": "two"}]), folder)


ALONE = {
    "model": CONVOLUTION,
    "data": [*NANO, "data=sums", "data.count=400"],
    "tokenizer": [*NANO, "tokenizer=characters"],
    "optimizer": [*NANO, "optimizer=lion", "optimizer.learning_rate=0.001"],
    "schedule": [*NANO, "schedule=inverse_root"],
}


@pytest.mark.long
@pytest.mark.parametrize("group", ALONE)
def test_each_plugin_works_alone(tmp_path: Path, corpus: Path, group: str) -> None:
    text = [] if group == "data" else ["data=text_files", f"data.path={corpus}"]
    tokenizer = [] if group == "tokenizer" else ["tokenizer=bytes"]
    folder = trained(tmp_path, *ALONE[group], *text, *tokenizer)
    assert LanguageModel.load(folder).generate("1", max_new_tokens=4).startswith("1")
