"""`pretrain.train` in a program of the user's own: the settings and the result of the command line, no trace of it."""

import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job import TINY, Job, files

import pretrain
from pretrain.config.compose import compose
from pretrain.config.keyword_settings import overrides_of
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError, DataError, Interrupted


class Precision(Enum):
    fp32 = "fp32"


def composed(**settings: Any) -> RunConfig:
    found: RunConfig = compose("train", overrides_of(settings))
    return found


@pytest.mark.slow
def test_python_values_are_the_settings_that_the_command_line_reads():
    words = overrides_of({"trainer": {"max_steps": 20, "precision": Precision.fp32}, "model": "gpt_nano", "size": None})
    assert words == ["model=gpt_nano", "trainer.max_steps=20", "trainer.precision=fp32", "size=null"]
    path = Path("a b/ü's, 'quoted' = [1].txt")
    found = composed(
        data={"preset": "text_files", "path": path, "validation_fraction": np.float64(0.1)},
        model={"preset": "llama_nano", "n_layers": np.int64(3), "tie_embeddings": True},
        optimizer={"learning_rate": 1e-5},
        sample={"prompts": ["It's {so}, \\ long", "one, two", ""]},
        callbacks={"stop": {"kind": "early_stopping", "patience": 2}},
        name="it's $HOME, ~ and #1",
        plugins=(),
        seed=2**31,
    )  # fmt: skip
    assert found.data.path == str(path)  # type: ignore[attr-defined]
    assert found.data.validation_fraction == 0.1
    assert (found.model.n_layers, found.model.kind, found.model.tie_embeddings) == (3, "transformer", True)
    assert (found.optimizer.learning_rate, found.seed, found.plugins) == (1e-5, 2**31, [])
    assert found.name == "it's $HOME, ~ and #1"
    assert found.sample.prompts == ["It's {so}, \\ long", "one, two", ""]
    assert found.callbacks["stop"].patience == 2
    assert composed(data={"path": "~/texts"}).data.path == str(Path.home() / "texts")  # type: ignore[attr-defined]
    assert composed(**{"model.n_layers": 5}).model.n_layers == 5


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ([], {"model": object()}, r"model is an object of object, and a setting is a text, .* Try a preset by name"),
        ([], {"a b": 1}, r"'a b' is no name of a setting\. Settings have names such as seed or model\.n_layers"),
        ([], {"hydra": {"verbose": True}}, "'hydra' is no name of a setting"),
        ([], {"model": "gpt_nan"}, r"model=gpt_nan is not a preset\. Did you mean gpt_nano\?"),
        ([], {"trainer": {"max_step": 3}}, r"trainer\.max_step is not a setting\. Did you mean trainer\.max_steps\?"),
        ([], {"seed": "many"}, "seed=many does not fit"),
        (["-m"], {}, r"'-m' is no setting\. Flags are arguments here, .* a sweep is a loop over calls"),
        ([], {"search": "gpt_nano"}, r"search=gpt_nano starts many runs, .* Type: .*train.* search=gpt_nano"),
        ([], {"config_dir": "nowhere"}, "--config-dir nowhere is no folder"),
        ([], {"config_name": "trian"}, "--config-name trian names no file of settings. Did you mean train"),
    ],
)
def test_what_cannot_be_is_a_config_error(overrides: list[str], settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        pretrain.train(*overrides, **settings)


def test_it_runs_in_the_main_thread_and_under_no_launcher(monkeypatch: pytest.MonkeyPatch):
    raised: list[BaseException] = []

    def call() -> None:
        try:
            pretrain.train(model="gpt_nano")
        except ConfigError as error:
            raised.append(error)

    thread = threading.Thread(target=call, name="worker-1")
    thread.start()
    thread.join()
    assert str(raised[0]).startswith("pretrain.train() runs in the main thread, and this is worker-1. Call it there")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ConfigError, match=r"torchrun or srun has started this one\. Type .* after it"):
        pretrain.train(model="gpt_nano")


def state_of_the_process() -> list[Any]:
    return [
        dict(os.environ), sys.argv, Path.cwd(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)],
        random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state()),  # noqa: NPY002
        logging.getLogger("lightning.pytorch").level, list(warnings.filters),
        [thread.name for thread in threading.enumerate() if not thread.daemon],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_is_that_of_the_command_line_bit_for_bit(
    job: Job, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    typed = job.run("typed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "0")  # a run takes it away from Lightning
    settings = {"data": {"preset": "text_files", "path": corpus}, "trainer": {"max_steps": 10, "deterministic": True}}
    own_words = [word for word in TINY if not word.startswith(("data=", "trainer.max_steps"))]
    random.seed(7)
    before = state_of_the_process()
    run = pretrain.train(*own_words, **settings, paths={"run_dir": "called"})  # type: ignore[arg-type]
    assert state_of_the_process() == before
    assert files(run.folder) == files(typed)
    assert "\n  python " in capsys.readouterr().out  # what to type next
    assert run.loss == run.report.validation["val/loss"]
    assert [step for step, _ in run.curve()] == list(range(1, 11))
    assert run.model().generate("The", max_new_tokens=3).startswith("The")
    with pytest.raises(
        ConfigError, match=r"curve\('los'\): the run has no figure of this name. There are: .*train/los"
    ):
        run.curve("los")
    with pytest.raises(DataError):
        pretrain.train(*own_words, data={"preset": "text_files", "path": tmp_path / "nothing"})

    def interrupt() -> None:
        while not list(Path("again/checkpoints").glob("step-*[0-9]")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    again: dict[str, Any] = settings | {"trainer": {"max_steps": 10_000}, "checkpoint": {"every_n_steps": 3}}
    again |= {"schedule": "constant", "paths": {"run_dir": "again"}}
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match=r"SIGINT at step \d+: saved; go on with resume=auto"):
        pretrain.train(*own_words, **again)
    assert state_of_the_process() == before
    step = max(int(path.name.split("-")[1]) for path in Path("again/checkpoints").glob("step-*"))
    again["trainer"] = {"max_steps": step + 1}
    assert pretrain.train(*own_words, **again, resume="auto").report.steps == step + 1
    train_log = Path("again/train.log").read_text()
    assert train_log.index("Interrupted: SIGINT at step") < train_log.index("resuming again at step")
    assert train_log.rindex(f"step {step + 1}/{step + 1}  loss") < train_log.rindex(" Report\n")
    assert state_of_the_process() == before
