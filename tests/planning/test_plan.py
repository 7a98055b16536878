"""plan.py on the command line: output, errors, and a finished run against its estimate."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pretrain.data.config import TokenizerConfig
from pretrain.data.prepare import find_prepared, prepare
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.config import ModelConfig
from pretrain.planning.answer import answer, forecast_in_words, measured_by
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import find_data
from pretrain.planning.units import count, duration, gib
from pretrain.planning.workload import workload_of
from pretrain.reports.plan import write_plan
from pretrain.training.config import Precision

Plan = Callable[..., PlanConfig]


@pytest.mark.slow
def test_a_plan_for_64_gpus_needs_none(plan: Plan) -> None:
    text = answer(
        plan("model=gpt_small", "vocab_size=50257", "trainer=fsdp", "trainer.devices=8", "trainer.num_nodes=8",
             "model.n_layers=2", "price_per_hour=2", "paths.cache_dir=/nowhere")
    )  # fmt: skip
    for part in ("64 devices (fsdp)", "FSDP2's gathered", "H100", "an MFU of 40%", "fits:", "at 2 an hour",
                 "Hoffmann et al. 2022", "Besiroglu", "20 tokens per parameter", "every_n_steps=", "not prepared here",
                 "counted by a dry run in", "GPU kernels save less"):  # fmt: skip
        assert part in text


@pytest.mark.slow
def test_a_plan_by_the_clock_without_a_device_of_known_pace(plan: Plan, tmp_path: Path) -> None:
    words = ["device=a100", "trainer.max_steps=-1", "trainer.max_time=10", "dry_run=false", "data=text_files"]
    text = answer(plan(*words, f"data.path={tmp_path}"))
    assert "10 minutes" in text
    assert "price_per_hour=..." in text
    assert "an MFU of 45.5%" in answer(plan(*words, f"data.path={tmp_path}", "mfu=0.455"))


@pytest.mark.slow
def test_each_stage_is_planned_and_the_largest_one_decides(plan: Plan) -> None:
    words = ["model=llama_nano", "vocab_size=2048", "device=h100", "dry_run=false", "paths.cache_dir=/nowhere"]
    stages = ["trainer.max_steps=100", "stages.short.until_steps=60", "stages.long.until_steps=90",
              "stages.long.model.context_length=2048", "stages.end.batch_size=4"]  # fmt: skip
    config = plan(*words, "model.context_length=256", "batch_size=8", *stages)
    text, forecast = forecast_in_words(config)
    assert forecast is not None
    assert forecast.work.length == 2048
    table = [line.split()[:3] for line in text.splitlines()[2:5]]
    assert table == [["short", "60", "122,880"], ["long", "30", "491,520"], ["end", "10", "10,240"]]
    assert "Below: stage long, which needs the most memory" in text
    clock = ["trainer.max_steps=-1", "trainer.max_time=10", "stages.short.until_steps=60", "stages.end.batch_size=4"]
    text = answer(plan(*words, "model.context_length=256", "batch_size=8", *clock))
    assert "  all stages: 10 minutes" in text  # the last one has what is left
    late = ["trainer.max_steps=-1", "trainer.max_time=1e-6", "stages.a.until_steps=60", "stages.b.batch_size=4"]
    lines = answer(plan(*words, "model.context_length=256", "batch_size=8", *late)).splitlines()
    assert lines[2].split()[:3] == ["a", "1", "2,048"]
    assert lines[3].endswith("not reached by trainer.max_time")


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [["tokenizer=bytes"], ["tokenizer=bpe", "tokenizer.vocab_size=300"]])
def test_a_stage_with_another_text_is_planned_with_the_size_of_that(
    tiny: Any, plan: Plan, tokenizer: list[str]
) -> None:
    (tiny.folder / "other.txt").write_text("\n".join(f"line {number}" for number in range(50)))
    words = [*tiny.words, *tokenizer, "device=h100", "dry_run=false", "trainer.max_steps=100"]
    other = f"data.path={tiny.folder / 'other.txt'}"
    of_run, of_stage = plan(*words), plan(*words, other)
    for text in (of_run, of_stage):
        prepare(text.data, text.tokenizer, tiny.folder / "cache", lambda line: None, of_run.data)
    stages = ["stages.a.until_steps=90", f"stages.b.{other}", "stages.b.model.dropout=0.1"]
    found, forecast = forecast_in_words(plan(*words, "model.dropout=0", *stages))
    assert "Below: stage b" in found
    expected = find_data(of_stage, of_run.data)
    assert expected is not None
    assert forecast is not None
    assert forecast.target.data == expected != find_data(of_run)


@pytest.mark.slow
def test_a_stage_behind_the_warmup_of_the_batch_reads_the_whole_batch(plan: Plan) -> None:
    config = plan(
        "model=llama_nano", "vocab_size=2048", "device=h100", "dry_run=false", "paths.cache_dir=/nowhere",
        "model.context_length=256", "batch_size=8", "batch_warmup_rows=1", "batch_warmup_tokens=20000",
        "trainer.max_steps=100", "stages.a.until_steps=50", "stages.b.optimizer.learning_rate=1e-4",
        "stages.b.model.dropout=0.1",
    )  # fmt: skip
    text, forecast = forecast_in_words(config)
    assert forecast is not None
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["a", "b"]
    assert text.splitlines()[3].split()[1:3] == ["50", f"{50 * 8 * 256:,}"]
    assert "Below: stage b" in text  # by its dropout
    assert forecast.cost.tokens == 50 * 8 * 256


@pytest.mark.slow
def test_a_plan_is_a_page_as_well(plan: Plan, tmp_path: Path) -> None:
    config = plan("model=gpt_small", "vocab_size=50257", "device=h100", "price_per_hour=2", "dry_run=false",
                  "paths.cache_dir=/nowhere", "name='<script>'")  # fmt: skip
    text, forecast = forecast_in_words(config)
    assert forecast is not None
    write_plan(tmp_path / "plan.html", forecast, config, text)
    page = (tmp_path / "plan.html").read_text()
    for part in (
        "fits",
        "weights",
        "optimizer",
        "can be used",
        "device hours",
        "at 2 an hour",
        "model.n_layers",
        "Blocks.",
    ):
        assert part in page
    assert "<script" not in page
    with pytest.raises(ConfigError, match=r"report=.*plan.html cannot be written: .* Try report=plan.html"):
        write_plan(tmp_path / "nowhere" / "plan.html", forecast, config, text)
    with pytest.raises(ConfigError, match=r"report=a.html writes a plan, and run=b compares a finished run"):
        plan("report=a.html", "run=b")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mfu=0", r"mfu=0.0 is not a share above 0 and up to 1. Try mfu=0.4"),
        ("mfu=1.5", "mfu=1.5"),
        ("memory_gib=0", r"memory_gib=0.0 is not a number of GiB above 0. Try memory_gib=80"),
        ("price_per_hour=-1", "Try price_per_hour=2.5"),
        ("hours_between_failures=inf", "Try hours_between_failures=24"),
        ("storage_gb_per_s=0", "Try storage_gb_per_s=1"),
        ("vocab_size=0", r"vocab_size=0 is below 1. Try vocab_size=50257"),
        ("device=h1000", "device"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(plan: Plan, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(words)


class Runes(TokenizerConfig):
    trains = True


@pytest.mark.slow
def test_what_must_be_known_is_asked_for(plan: Plan, tmp_path: Path) -> None:
    groups = "optimizer.groups.a={match: [nothing], weight_decay: 0}"
    with pytest.raises(ConfigError, match=r"groups\.a\.match=nothing matches no trained parameter"):
        answer(plan("vocab_size=64", "dry_run=false", "device=h100", groups))
    with pytest.raises(ConfigError, match=r"trainer.devices=-1 means all GPUs.*Try trainer.devices=8"):
        answer(plan("trainer=fsdp", f"paths.cache_dir={tmp_path}"))
    hub = plan("tokenizer=pretrained", "tokenizer.path=openai-community/gpt2")
    with pytest.raises(ConfigError, match=r"tokenizer.path=openai-community/gpt2 is not a folder.*vocab_size=50257"):
        hub.tokenizer.largest_vocabulary()
    with pytest.raises(ConfigError, match=r"tokenizer.kind=runes has no known vocabulary size"):
        Runes(kind="runes").largest_vocabulary()
    other = plan()
    other.model = ModelConfig()
    with pytest.raises(ConfigError, match=r"model.kind=\? is not a transformer, and only .* is planned"):
        workload_of(other, 100, Precision.fp32)
    assert plan("tokenizer=bytes").tokenizer.largest_vocabulary() == 259
    assert plan("tokenizer.vocab_size=512").tokenizer.largest_vocabulary() == 512


@pytest.mark.slow
def test_prepared_data_is_known_and_none_is_prepared(tiny: Any, plan: Plan, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for words in ([], ["tokenizer=bpe", "tokenizer.vocab_size=300"]):
        config = plan(*tiny.words, *words)
        assert find_data(config) is None
        assert find_prepared(config.data, config.tokenizer, cache) is None
        made = prepare(config.data, config.tokenizer, cache, report=lambda line: None)
        found = find_data(config)
        assert found is not None
        assert found.tokens == made.train[""].n_tokens
        assert found.vocab_size == made.tokenizer.vocab_size
    text = answer(plan(*tiny.words, "trainer.max_steps=100000", "device=h100", "dry_run=false"))
    assert f"{made.train[''].n_tokens:,} tokens" not in text  # of the other tokenizer
    assert "times" in text
    assert "repeated tokens add little" in text


@pytest.mark.slow
def test_a_stream_has_no_size_and_the_hub_is_not_asked(tiny: Any, plan: Plan, tmp_path: Path) -> None:
    config = plan(*tiny.words, "data.mode=stream", "data.era_tokens=1024")
    assert find_data(config) is None
    prepare(config.data, config.tokenizer, tmp_path / "cache", report=lambda line: None)
    found = find_data(config)
    assert found is not None
    assert found.tokens is None
    assert find_data(plan("data=hugging_face", "data.path=owner/name")) is None
    assert find_data(plan("data=text_files", f"data.path={tmp_path / 'missing'}")) is None


@pytest.mark.long
def test_a_finished_run_is_compared_with_its_forecast(tiny: Any, plan: Plan) -> None:
    from pretrain.training.train import run

    report = run(tiny.plan())
    text = answer(plan(f"run={report.folder}", "device=cpu", "dry_run=false"))
    assert "forecast" in text.splitlines()[1]
    rows = {line.split("  ")[1]: line for line in text.splitlines()[2:]}
    assert list(rows) == ["parameters", "tokens/s", "time in steps", "memory between steps"]
    assert rows["parameters"].endswith("+0.0%")
    on_gpu = answer(plan(f"run={report.folder}", "device=h100", "dry_run=false"))
    assert "peak memory" in on_gpu
    runs = Path(report.folder).parent
    with pytest.raises(CheckpointError, match=rf"Try run={re.escape(report.folder)}, the newest finished one there\."):
        answer(plan(f"run={runs}"))
    (Path(report.folder) / "metrics.csv").unlink()
    measured = measured_by(Path(report.folder))
    assert measured.memory_gib is None
    assert measured.tokens_per_s() == pytest.approx(report.tokens_per_s)
    assert "memory" not in answer(plan(f"run={report.folder}", "device=h100", "dry_run=false"))
    (Path(report.folder) / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.yaml: .* Try run=logs/gpt_nano/<time>\."):
        answer(plan(f"run={Path(report.folder).parent}"))
    with pytest.raises(CheckpointError, match=r"holds no report.json: only a finished run can be compared"):
        answer(plan(f"run={report.folder}"))


@pytest.mark.slow
def test_the_stages_of_a_finished_run_are_compared_each_with_its_own_forecast(tiny: Any, plan: Plan) -> None:
    from pretrain.training.train import run

    stages = ["stages.a.until_steps=4", "stages.long.model.context_length=64", "stages.long.batch_size=2"]
    report = run(tiny.plan(*stages, "model.context_length=32", "trainer.max_steps=6", "trainer.log_every_n_steps=1"))
    text = answer(plan(f"run={report.folder}", "device=h100", "dry_run=false"))
    rows = {line.split("  ")[1]: line.split() for line in text.splitlines()[2:]}
    assert list(rows) == ["parameters", "tokens/s of a", "tokens/s of long", "time in steps", "peak memory"]
    logged = [line.split(",") for line in (Path(report.folder) / "metrics.csv").read_text().splitlines()]
    measured = {int(row[0]): float(row[2]) for row in logged if row[1] == "speed/tokens_per_s"}
    assert sorted(measured) == [1, 2, 3, 4, 5, 6]
    assert rows["tokens/s of a"][4] == f"{median(measured[step] for step in (2, 3, 4)):,.0f}"
    assert rows["tokens/s of long"][4] == f"{median(measured[step] for step in (5, 6)):,.0f}"
    assert rows["tokens/s of a"][3] != rows["tokens/s of long"][3]


def test_numbers_are_easy_to_read() -> None:
    assert [count(n) for n in (3.0, 1234.0, 3.261e8, 1.129e10, 2e12)] == ["3", "1.234 k", "326.1 M", "11.29 B", "2 T"]
    assert [gib(n) for n in (2**20, 2**29, 3 * 2**30)] == ["1.00 MiB", "0.50 GiB", "3.00 GiB"]
    assert [duration(s) for s in (0.5, 119, 121, 7201, 172_801)] == [
        "0.5 s",
        "119 s",
        "2.02 minutes",
        "2 hours",
        "2 days",
    ]
