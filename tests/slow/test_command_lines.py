"""Command lines as processes: exit codes, messages, signals, resume."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def command(*words: str, script: str = "train") -> list[str]:
    return [sys.executable, str(ROOT / "src" / f"{script}.py"), *words]


def call(*words: str, script: str = "train", cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words, script=script), cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "number", "code"),
    [
        pytest.param("gpt_nano", signal.SIGINT, 130, id="causal"),
        pytest.param("bert_nano", signal.SIGTERM, 143, id="masked"),
    ],
)
@pytest.mark.fault("F06")
def test_a_signal_ends_a_run_that_goes_on_exactly(tmp_path: Path, corpus: Path, family: str, number: int, code: int):
    """Killed in the middle, resumed by the short command, and compared bit for bit with a run that was left alone."""
    from pretrain.checkpoint.read import open_checkpoint

    words = [
        f"model={family}",
        "data=text_files",
        f"data.path={corpus}",
        "tokenizer=bytes",
        "model.n_layers=2",
        "model.d_model=64",
        "model.context_length=64",
        "model.dropout=0.1",
        "trainer.max_steps=150",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=1000",
    ]
    process = subprocess.Popen(
        command(*words, "data.prefetch=2"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 20/"):
            break
    os.killpg(process.pid, number)  # as a terminal does
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert time.monotonic() - sent < 30
    assert re.fullmatch(r"Interrupted: SIG\w+ at step \d+: saved; go on with resume=auto\n", errors), errors

    resumed = call(*words, "resume=auto", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming logs/" in resumed.stdout
    assert "Report" in resumed.stdout
    folder = next((tmp_path / "logs" / family).iterdir())
    found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf8"))  # measured: on a busy machine another
    words += [f"trainer.precision={found['trainer']['precision']}"]
    words += [f"optimizer.newton_schulz_precision={found['optimizer']['newton_schulz_precision']}"]
    whole = call(*words, "paths.run_dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    one, other = open_checkpoint(folder), open_checkpoint(tmp_path / "whole")
    assert one.step == other.step == 150
    for part in ("model", "optimizer", "random"):
        assert (one.folder / f"{part}.safetensors").read_bytes() == (other.folder / f"{part}.safetensors").read_bytes()

    prompt = (
        "prompt=the quick" if family == "gpt_nano" else "prompt=The quick [MASK] fox jumps, over: the {lazy} dog's."
    )
    said = call(prompt, "checkpoint=whole", script="generate", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert ("the quick" if family == "gpt_nano" else "mask 1") in said.stdout
    scored = call("output=scores.json", script="eval", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert ("bits_per_byte" in scored.stdout) == (family == "gpt_nano")
    assert (tmp_path / "scores.json").exists()


def listens(process: int) -> bool:
    """Return whether a process waits for signals in a thread of its own, and blocks them elsewhere."""
    status = Path(f"/proc/{process}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk"))
    return bool(int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1)


def loads_torch(process: int) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{process}/maps").read_text()


@pytest.mark.fault("F06")
@pytest.mark.parametrize("script", ["train", "prepare"])
def test_a_signal_before_the_first_step_ends_in_one_line(tmp_path: Path, corpus: Path, script: str):
    """While settings are read, and torch is loaded: whatever a library makes of that."""
    words = ["data=text_files", f"data.path={corpus}", "tokenizer=bytes"]
    for is_time in (listens, loads_torch):
        process = subprocess.Popen(command(*words, script=script), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while process.poll() is None and not is_time(process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if process.returncode:  # else it was done, on a machine that is quick
            assert process.returncode in (130, -signal.SIGINT), errors
            assert errors.startswith("Interrupted: SIGINT")
            assert errors.count("\n") == 1, errors


def test_wrong_words_end_with_one_sentence_and_their_code(tmp_path: Path):
    for words, code, sentence in (
        (["data=text_files", "data.path=nowhere"], 3, "data.path=nowhere does not exist"),
        (["resume=nowhere"], 4, "nowhere does not exist. Name the folder of a run"),
        (["model=gtp_small"], 2, "Did you mean gpt_small?"),
    ):
        found = call(*words, cwd=tmp_path)
        assert found.returncode == code, found.stderr
        assert sentence in found.stderr
        assert "Traceback" not in found.stderr
        assert found.stderr.count("\n") == 1


def hparams_page(logs: Path) -> list[str]:
    """Return the settings of TensorBoard's HParams page in its order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import backend_context
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for folder in logs.glob("*/"):
        events = EventAccumulator(str(folder)).Reload()
        for metadata in events.summary_metadata.values():
            content = HParamsPluginData.FromString(metadata.plugin_data.content)
            if content.experiment.hparam_infos:
                backend_context._sort_and_reduce_to_hparams_limit(content.experiment)
                return [info.name for info in content.experiment.hparam_infos if info.differs]
    return []


@pytest.mark.long
@pytest.mark.fault("F17")
def test_a_sweep_does_what_it_can_and_later_only_what_is_missing(tmp_path: Path, corpus: Path):
    words = ["-m", "data=text_files", f"data.path={corpus}", "tokenizer=bytes", "model.n_layers=1", "model.d_model=16"]
    words += ["model.context_length=32", "trainer.max_steps=4", "schedule.warmup_steps=0", "schedule=linear,constant"]
    words += ["trainer=cpu", "paths.logs_dir=my runs/é = $x, 😀"]
    wrong = call(*words, "model.n_heads=2,3", cwd=tmp_path)  # told before anything runs
    assert wrong.returncode == 2
    assert not (tmp_path / "my runs").exists()
    words.append("init_from=null,nowhere")
    first = call(*words, cwd=tmp_path)
    assert first.returncode == 4, first.stderr
    rows = first.stdout.partition("\nreport: ")[0].rstrip().splitlines()[-5:]
    assert rows[0].split() == ["settings", "val/loss", "exit", "folder"]
    assert [row.partition(" my runs")[0].split()[-1] for row in rows[1:]] == ["0", "4", "0", "4"]
    assert sum(row.startswith("*") for row in rows) == 1
    jobs = list((tmp_path / "my runs" / "é = $x, 😀" / "sweep").glob("*/"))
    assert len(jobs) == 4
    settings = hparams_page(tmp_path / "my runs" / "é = $x, 😀" / "sweep")
    assert settings == ["init_from", "schedule"]  # the first five are shown, so those of the sweep are
    next(path / "report.json" for path in jobs if (path / "report.json").exists()).unlink()  # as if interrupted
    again = call(*words, cwd=tmp_path)
    assert again.stdout.count("finished before") == 1
    assert again.stdout.count("resuming my runs/é = $x, 😀/sweep/") == 1
    assert again.stdout.count("Report") == 1
    assert first.stdout.count("Report") == 2


def test_the_store_is_prepared_once(tmp_path: Path, corpus: Path):
    words = ["data=text_files", f"data.path={corpus}", "tokenizer.vocab_size=300"]
    first = call(*words, script="prepare", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "training a tokenizer" in first.stdout
    again = call(*words, script="prepare", cwd=tmp_path)
    assert "training a tokenizer" not in again.stdout
    assert "every file verified" in again.stdout
    assert not list((tmp_path / ".cache").rglob("*.tmp*"))


def test_a_user_may_write_a_package_of_presets_and_classes(tmp_path: Path):
    """A dataclass registered before main() is a choice like the built-in ones."""
    script = tmp_path / "mine.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from pretrain.config.cli import main\n"
        "from pretrain.config.registry import register\n"
        "from pretrain.config.run import RunConfig\n"
        "from pretrain.optim.schedules import ScheduleConfig\n"
        "@dataclass\n"
        "class StepsConfig(ScheduleConfig):\n"
        "    kind: str = 'steps'\n"
        "    every: int = 10\n"
        "    def after_warmup(self, step, max_steps):\n"
        "        return 0.5 ** (step // self.every)\n"
        "register('schedule', StepsConfig)\n"
        "main('train', RunConfig, lambda config, words: print(config.schedule.lr_multiplier(25, 100)))\n"
    )
    found = subprocess.run(
        [sys.executable, str(script), "schedule=steps", "schedule.warmup_steps=0"],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ,
    )  # fmt: skip
    assert found.stdout.strip() == "0.25", found.stderr


FRESH = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
row = AutoModelForCausalLM.from_pretrained(sys.argv[1]).generate(
    **tokenizer("the quick", return_tensors="pt"), max_new_tokens=40, do_sample=False
)
sys.stdout.write(tokenizer.decode(row[0], skip_special_tokens=True) + "\\n")
"""


FRESH_MASKED = """
import json, sys
from transformers import pipeline
found = pipeline("fill-mask", model=sys.argv[1], top_k=8)(sys.argv[2])
assert "pretrain" not in sys.modules
json.dump([[each["token_str"], each["score"]] for each in found], sys.stdout)
"""
MASKED_SHAPES = {
    "BertForMaskedLM": ["model=bert_base", "model.d_ff=64"],
    "ModernBertForMaskedLM": ["model=modernbert_nano"],
}


@pytest.mark.long
@pytest.mark.parametrize("architecture", MASKED_SHAPES)
def test_an_exported_masked_model_fills_alike_in_a_process_without_us(tmp_path: Path, corpus: Path, architecture: str):
    """Trained, exported, and asked by transformers' own pipeline: the same tokens, as likely, in the same order."""
    from pretrain import LanguageModel

    words = [*MASKED_SHAPES[architecture], "data=text_files", f"data.path={corpus}", "tokenizer.vocab_size=300"]
    words += ["model.n_layers=2", "model.d_model=32", "model.n_heads=2", "model.context_length=64"]
    words += ["optimizer.learning_rate=0.003", "schedule.warmup_steps=5", "batch_size=16"]
    trained = call(*words, "trainer.max_steps=60", "paths.run_dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    exported = call("checkpoint=run", "output=out", script="export", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert architecture in exported.stdout
    llm = LanguageModel.load(tmp_path / "run")
    ours = llm.predict_mask("the quick [MASK] jumps over a lazy dog.", top_k=5)[0]
    mask = llm.tokenizer.token(llm.tokenizer.mask_id or 0)
    theirs = subprocess.run(
        [sys.executable, "-c", FRESH_MASKED, "out", f"the quick {mask} jumps over a lazy dog."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    special = {llm.tokenizer.token(each) for each in llm.tokenizer.special_ids}
    found = [(token, score) for token, score in json.loads(theirs.stdout) if token not in special][:5]
    assert [answer.token for answer in ours] == [token for token, _ in found]
    assert [answer.probability for answer in ours] == pytest.approx([score for _, score in found], rel=0.01)


@pytest.mark.long
def test_an_exported_model_goes_on_alike_in_a_process_without_us(tmp_path: Path, corpus: Path):
    """Trained, exported, loaded by plain transformers, and started from again: the same greedy text each time."""
    data = ["data=text_files", f"data.path={corpus}"]
    words = [*data, "tokenizer.vocab_size=300", "model.d_model=32", "trainer.max_steps=60"]
    trained = call(*words, "paths.run_dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    exported = call("checkpoint=run", "output=out", script="export", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "logits of transformers and ours differ by at most" in exported.stdout
    greedy = ["prompt=the quick", "temperature=0", "repetition_penalty=1", "max_new_tokens=40"]
    ours = call(*greedy, "checkpoint=run", script="generate", cwd=tmp_path)
    again = call(*greedy, "checkpoint=out", script="generate", cwd=tmp_path)
    theirs = subprocess.run(
        [sys.executable, "-c", FRESH, "out"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert len(ours.stdout) > 40
    assert ours.stdout == again.stdout == theirs.stdout, theirs.stderr
    figures = [
        [line for line in call(f"checkpoint={name}", f"path={corpus}", script="eval", cwd=tmp_path).stdout.splitlines()
         if not line.startswith(("checkpoint", "tokenized"))]
        for name in ("run", "out")
    ]  # fmt: skip
    assert len(figures[0]) == 8
    assert figures[0] == figures[1]
    more = ["model=imported", "init_from=out", *data, "trainer.max_steps=2", "schedule.warmup_steps=0"]
    assert call(*more, cwd=tmp_path).returncode == 0
    refused = call("checkpoint=run", "output=out", script="export", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    (tmp_path / "out" / "model.safetensors").write_bytes(b"short")
    broken = call("checkpoint=out", "output=new", script="export", cwd=tmp_path)
    assert (broken.returncode, broken.stderr.count("\n")) == (4, 1), broken.stderr
