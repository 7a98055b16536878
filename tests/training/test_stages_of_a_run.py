"""Stages of a run: what each trains on, and that a run killed in a stage or at a border ends as one that was not."""

import json
from pathlib import Path
from typing import Any

import pytest
from same_state import assert_same_state

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose
from pretrain.config.serialize import to_dict
from pretrain.config.stages import course_of
from pretrain.data.collate import IGNORE
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.evaluation.run import score
from pretrain.language_model import LanguageModel
from pretrain.launch.resumed_stages import keep_ends, trained_stages
from pretrain.launch.run_folder import read_rows
from pretrain.launch.run_plan import texts_of
from pretrain.reports.run import read_run, run_page
from pretrain.training.datamodule import MicroBatches
from pretrain.training.report import Report
from pretrain.training.train import train

ENCODER = ["model=modernbert_nano", "tokenizer=bpe", "tokenizer.vocab_size=270", "optimizer=adamw", "logger=csv"]
THREE = [
    "trainer.max_steps=12",
    "objective.validation_mask_probability=0.15",
    "batch_warmup_rows=2",
    "batch_warmup_tokens=256",  # four steps of 2 rows of 32 tokens, then 4 rows
    "stages.short.until_steps=5",
    "stages.long.until_fraction=0.75",
    "stages.long.model.context_length=64",
    "stages.long.model.rope_base=1e6",
    "stages.long.batch_size=2",
    "stages.long.batch_warmup_rows=null",
    "stages.long.batch_warmup_tokens=null",
    "stages.decay.model.context_length=64",
    "stages.decay.model.rope_base=1e6",
    "stages.decay.objective.mask_probability=0.15",
    "stages.decay.optimizer.learning_rate=1e-3",
    "stages.decay.schedule={kind: linear, min_lr_ratio: 0.0}",
]


class Reads:
    """The micro-batches that runs take from their loaders, by step, with the rows after them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_step: dict[int, Any] = {}
        self.rows: dict[int, list[Any]] = {}
        self.killed_at: int | None = None  # reading this step fails once
        original, reads = MicroBatches.__getitem__, self

        def read(batches: MicroBatches, index: int) -> Any:
            if index == reads.killed_at:
                reads.killed_at = None
                raise OSError("killed")
            batch = original(batches, index)
            reads.by_step[index] = batch
            reads.rows[index] = batches.stream.row_origins(batch.sample_indices.numpy())
            return batch

        monkeypatch.setattr(MicroBatches, "__getitem__", read)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def trained(tiny: Any, *words: str, folder: str = "run") -> Report:
    """Train without a thread that reads ahead: what is read is trained on."""
    return train(tiny.plan("data.prefetch=0", f"paths.run_dir={tiny.folder / folder}", *words))


def figures(folder: Path, name: str) -> dict[int, float]:
    return {int(row["step"]): float(row["value"]) for row in read_rows(folder / "metrics.csv") if row["name"] == name}


@pytest.mark.slow
def test_a_run_killed_in_each_stage_and_at_each_border_ends_as_one_that_was_not(
    tiny, reads: Reads, capsys: pytest.CaptureFixture[str], alive_before: list[int]
) -> None:
    words = [*ENCODER, *THREE]
    whole = Path(trained(tiny, *words, folder="whole").folder)
    assert alive_before == [0, 0, 0]  # the model of a stage is freed before that of the next is built
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.startswith("  ")][:4]
    assert table[1] == ["short", "1", "to", "5", "384", "4", "x", "32", "0.001,", "wsd"]
    assert table[2] == ["long", "6", "to", "9", "512", "2", "x", "64", "0.001,", "wsd"]
    assert [row[:4] for row in table[3:]] == [["decay", "10", "to", "12"]]

    shapes = [tuple(reads.by_step[step].tokens.shape) for step in range(12)]
    assert shapes == [(2, 32)] * 4 + [(4, 32)] + [(2, 64)] * 4 + [(4, 64)] * 3
    samples = [sample for step in range(12) for sample in reads.by_step[step].sample_indices.tolist()]
    assert samples == list(range(32))  # none is skipped or read twice, so no mask is drawn twice
    shares = [float((reads.by_step[step].targets != IGNORE).sum()) / shape[0] / shape[1]
              for step, shape in enumerate(shapes)]  # fmt: skip
    assert min(shares[:9]) > 0.25 > 0.2 > max(shares[9:]) > 0.1
    own = [row.id for step in range(5, 12) for row in reads.rows[step]]
    assert all(name.startswith("long/") for name in own)  # the third stage goes on in the order of the second
    assert len(set(own[:8])) == 8
    rates = figures(whole, "optim/learning_rate")
    assert [rates[step] for step in (10, 11, 12)] == pytest.approx([1e-3, 5e-4, 0.0])
    assert [figures(whole, "progress/stage")[step] for step in (1, 5, 6, 9, 10)] == [1, 1, 2, 2, 3]

    for killed_at in (2, 5, 7, 9, 11):  # in each stage, and after the checkpoint of each border
        reads.killed_at = killed_at
        with pytest.raises(OSError, match="killed"):
            trained(tiny, *words, "resume=auto", folder="killed")
        saved = open_checkpoint(tiny.folder / "killed") if killed_at > 2 else None
        assert saved is None or saved.step == {5: 5, 7: 5, 9: 9, 11: 9}[killed_at]
    trained(tiny, *words, "resume=auto", folder="killed")
    assert_same_state(whole, tiny.folder / "killed")
    assert figures(whole, "train/loss")[12] == figures(tiny.folder / "killed", "train/loss")[12]

    last = open_checkpoint(whole)
    assert last.run_config().model.context_length == 64  # what reads the weights gets the shape they were trained in
    assert last.whole_config().model.context_length == 32
    assert LanguageModel.load(whole).model.config.rope_base == 1e6
    assert [row.id for row in rows_of_step(whole, 7)] == [row.id for row in reads.rows[6]]
    with pytest.raises(ConfigError, match=r"step=3 read rows in another order: after step 5 another stage began"):
        next(rows_of_step(whole, 3))
    page = run_page(read_run(whole))
    assert "objective.mask_probability=0.15" in page
    assert [each["name"] for each in json.loads((whole / "history.json").read_text())["stages"]] == [
        "short", "long", "decay",
    ]  # fmt: skip


@pytest.mark.long
def test_a_finished_run_gets_another_stage_and_a_stage_changes_what_a_causal_model_reads(
    tiny, corpus: Path, reads: Reads, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tiny.folder / "numbers"
    numbers.mkdir()
    for count in range(20):
        (numbers / f"{count}.txt").write_text(str(7**40 + count))
    sources = (
        f"{{words: {{kind: text_files, path: {corpus}, weight: 0.75}}, "
        f"numbers: {{kind: text_files, path: {numbers}, weight: 0.25}}}}"
    )
    tiny.words[:2] = ["data=mixture", f"data.sources={sources}"]
    words = ["model=llama_nano", "stages.most.until_steps=8", "stages.rest.data.sources.numbers.weight=2.25"]
    first = Path(trained(tiny, *words).folder)
    shares = [_share_of_numbers(reads, steps) for steps in (range(8), range(8, 12))]
    assert shares == [0.25, 0.75]
    assert figures(first, "optim/learning_rate")[12] < figures(first, "optim/learning_rate")[4]  # one schedule for all

    other = [word for word in tiny.words if not word.startswith("trainer.max_steps")]
    more = ["trainer.max_steps=16", "stages.rest.until_steps=12", f"resume={first}"]
    tiny.words = other
    with pytest.raises(ConfigError, match=r"stages\.rest\.until_steps=12 is step 12, and the run ends at step 16"):
        trained(tiny, *words, *more)
    with pytest.raises(ConfigError, match=r"stages\.rest\.data\.sources\.numbers\.weight: 2\.25 in the run, 1 now"):
        trained(tiny, *words[:2], "stages.rest.data.sources.numbers.weight=1", "stages.rest.until_steps=12",
                "trainer.max_steps=12", f"resume={first}")  # fmt: skip
    longer = ["stages.last.model.context_length=64", "stages.last.batch_size=2"]
    report = trained(tiny, *words, *more, *longer)
    assert report.steps == 16
    assert [tuple(reads.by_step[step].tokens.shape) for step in (11, 12, 15)] == [(4, 32), (2, 64), (2, 64)]
    assert _share_of_numbers(reads, range(12, 16)) == 0.25
    assert "stages.last" in capsys.readouterr().out


@pytest.mark.long
def test_stages_are_entered_late_by_a_run_that_had_none(tiny, reads: Reads) -> None:
    tiny.words = [word for word in tiny.words if not word.startswith("trainer.max_steps")]
    first = Path(trained(tiny, *ENCODER, "trainer.max_steps=6").folder)
    late = ["stages.past.until_steps=4", "stages.past.batch_size=1", "stages.now.until_tokens=1280"]
    late += ["stages.now.model.context_length=64", "stages.now.batch_size=2", "stages.then.batch_size=1"]
    with pytest.raises(ConfigError, match=r"stages\.now: null in the run, (.|\n)*stages\.now,stages\.past"):
        trained(tiny, *ENCODER, "trainer.max_steps=12", *late, f"resume={first}")
    late.append("allow_change=[stages.past,stages.now]")  # steps 1 to 6 had no such settings
    for killed_at in (8, None):
        reads.killed_at = killed_at
        try:
            report = trained(tiny, *ENCODER, "trainer.max_steps=12", *late, f"resume={first}")
        except OSError:
            continue
    shapes = [tuple(reads.by_step[step].tokens.shape) for step in range(12)]
    assert shapes == [(4, 32)] * 6 + [(2, 64)] * 4 + [(1, 32)] * 2  # 768 tokens before, and 4 steps of 128
    assert report.steps == 12
    samples = [sample for step in range(12) for sample in reads.by_step[step].sample_indices.tolist()]
    assert samples == list(range(34))
    assert [row.id.partition("/")[0] for row in (reads.rows[6][0], reads.rows[11][0])] == ["now", "then"]


@pytest.mark.long
def test_a_longer_run_keeps_the_ends_of_stages_that_have_ended(tiny, reads: Reads) -> None:
    tiny.words = [word for word in tiny.words if not word.startswith("trainer.max_steps")]
    words = [*ENCODER, "stages.short.until_fraction=0.75", "stages.long.model.context_length=64"]
    first = Path(trained(tiny, *words, "trainer.max_steps=8").folder)
    longer = ["trainer.max_steps=12", f"resume={first}"]
    for typed, message in [
        (
            "stages.short.until_fraction=0.5",
            r"short\.until_fraction=0\.5 moves the end of a stage that ended at step 6",
        ),
        ("stages.long.until_steps=7", r"long\.until_steps=7 is step 7, and the run ends at step 12"),
        ("stages={a: {until_steps: 3}, b: {}}", r"stages\.long: .* in the run, null now"),
    ]:
        with pytest.raises(ConfigError, match=message):
            trained(tiny, *ENCODER, typed, *longer)
    cut = ["stages.long.until_steps=7", "stages.more.batch_size=1"]
    with pytest.raises(ConfigError, match=r"stages\.long trained the steps 7 to 8\. Try stages\.long\.until_steps=8"):
        trained(tiny, *ENCODER, *cut, "allow_change=[stages.more]", *longer)
    report = trained(tiny, *words, *longer)
    assert report.steps == 12
    assert [reads.by_step[step].tokens.shape[1] for step in (5, 6, 8, 11)] == [32, 64, 64, 64]
    with pytest.raises(ConfigError, match=r"batch_warmup_tokens: null in the run, 64 now"):
        trained(tiny, *words, *longer, "batch_warmup_rows=2", "batch_warmup_tokens=64")
    history = read_run(first).history
    assert history is not None
    assert [(stage.name, stage.begin) for stage in history.stages] == [("short", 0), ("long", 6)]
    report = trained(tiny, *words, "trainer.max_steps=14", f"resume={first}")  # the words of the first start, again
    assert report.steps == 14
    assert reads.by_step[13].tokens.shape[1] == 64


@pytest.mark.slow
def test_a_stage_that_ended_and_is_left_out_stays_so(tiny) -> None:
    config = tiny.config("stages.a.until_steps=3", "stages.a.batch_size=2", "stages.b.batch_size=4")
    saved, merged = to_dict(config), to_dict(config)
    merged["stages"]["a"] = None  # `stages.a=null` on a resume, which is then refused as a change
    keep_ends(trained_stages(config, course_of(config).sizes, 5), saved, merged)
    assert merged["stages"]["a"] is None
    assert saved["stages"]["a"]["until_steps"] == 3


def _share_of_numbers(reads: Reads, steps: range) -> float:
    rows = [row.source for step in steps for row in reads.rows[step]]
    return rows.count("numbers") / len(rows)


@pytest.mark.slow
def test_spikes_are_looked_for_among_the_losses_of_one_objective(tiny) -> None:
    """With fewer hidden tokens a loss is another one; a stage that changes its rate alone goes on with the window."""
    stages = [
        "stages.a.until_steps=2",
        "stages.b.until_steps=4",
        "stages.b.objective.mask_probability=0.15",
        "stages.c.objective.mask_probability=0.15",
        "stages.c.optimizer.learning_rate=1e-4",
    ]
    first = "trainer.validate_first=true"
    report = train(tiny.plan(*ENCODER, *stages, "trainer.max_steps=6", "divergence.on_spike=skip", first))
    assert len(open_checkpoint(Path(report.folder)).progress["losses"]) == 4  # of b and c
    assert report.first_validation == {}  # nothing to compare the last one with
    assert "since the start" not in str(report)


@pytest.mark.parametrize(
    ("words", "alike"),
    [
        (["stages.b.objective.mask_probability=0.15"], False),
        (["stages.b.objective.mask_probability=0.15", "objective.validation_mask_probability=0.3"], True),
        (["stages.b.model.context_length=64"], False),
        (["stages.b.data.validation_fraction=0.5"], False),
        (["stages.b.optimizer.learning_rate=1e-4"], True),
    ],
)
def test_the_first_and_the_last_validation_are_compared_if_alike(tiny, words: list[str], alike: bool) -> None:
    course = course_of(tiny.config(*ENCODER, "stages.a.until_steps=2", *words))
    assert [course.validates_as_at_start(stage) for stage in course.stages] == [True, alike]


@pytest.mark.slow
def test_early_stopping_counts_within_the_losses_of_one_objective(tiny) -> None:
    """The best loss of another objective may stay the best for ever, and ended the run soon after a border."""
    stop = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=100"]
    stages = ["stages.a.until_steps=2", "stages.b.objective.mask_probability=0.15", "trainer.max_steps=6"]
    report = train(tiny.plan(*ENCODER, *stop, *stages, "trainer.val_check_interval=1"))
    assert report.steps == 4  # step 2 is the first one of the other objective; it was step 3
    assert "did not improve in the last 2 records" in report.ended


@pytest.mark.slow
def test_text_of_a_later_stage_that_it_cannot_use_is_refused_before_the_first_step(tiny, tmp_path: Path) -> None:
    for name, labels in (("a", ("yes", "no")), ("b", ("yes", "maybe"))):
        lines = [f"the fox {number}\t{labels[number % 2]}\n" for number in range(40)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    stages = ["stages.a.until_steps=2", "trainer.max_steps=4"]
    labeled = ["data=labeled", f"data.path={tmp_path / 'a.tsv'}", "objective=classify", "model=bert_nano"]
    (tmp_path / "short.txt").write_text("the fox " * 20)
    needle = ["model=llama_nano", "model.context_length=128", "scores.every_n_steps=2"]
    needle += [f"scores.needle=[{tmp_path / 'short.txt'}]", "stages.b.model.context_length=512"]
    for words, error, message in [
        ([*labeled, f"stages.b.data.path={tmp_path / 'b.tsv'}"], ConfigError,
         r"in stages\.b: its training data has the labels maybe, yes, and that of the run has no, yes\. Give"),
        (["callbacks=early_stopping", "stages.b.data.validation_fraction=0"], ConfigError,
         r"in stages\.b: callbacks\.early_stopping watches the validation, and the run has no validation doc"),
        (needle, DataError, r"in stages\.b: scores\.needle: .* tokens, too few for model\.context_length=512"),
    ]:  # fmt: skip
        plan = tiny.plan(*stages, *words)
        with pytest.raises(error, match=message):
            train(plan)
        assert not list(plan.folder.glob("checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["until_steps=4", "until_tokens=512"])
def test_the_command_that_is_printed_makes_a_run_longer_whose_last_stage_has_an_end(tiny, end: str) -> None:
    length = f"trainer.max_{end.removeprefix('until_')}"
    tiny.words = [word for word in tiny.words if not word.startswith("trainer.max_steps")]
    words = ["trainer.max_steps=-1", length] if "tokens" in length else [length]
    report = train(tiny.plan("stages.a.until_steps=2", "stages.b.batch_size=4", f"stages.b.{end}", *words))
    assert report.longer.endswith(f" stages.b.{end.partition('=')[0]}=null")
    assert train(tiny.plan(f"resume={report.folder}", *report.longer.split())).steps == 8


@pytest.mark.slow
def test_a_validation_before_the_first_step_needs_none_in_a_later_stage(tiny) -> None:
    words = ["trainer.validate_first=true", "stages.a.until_steps=2", "stages.b.data.validation_fraction=0"]
    report = train(tiny.plan(*words, "trainer.max_steps=4"))
    assert report.steps == 4


@pytest.mark.slow
def test_the_text_of_a_stage_is_scored_in_the_tokens_of_the_run(tiny) -> None:
    """A tokenizer that is trained learns from the text of the run: the model knows no other."""
    (tiny.folder / "digits.txt").write_text("\n\n".join(str(7**40 + count) for count in range(200)))
    text = [f"stages.b.data.path={tiny.folder / 'digits.txt'}", "stages.b.data.separator='\\n\\n'"]
    report = train(tiny.plan(*ENCODER, "trainer.max_steps=4", "stages.a.until_steps=2", *text))
    settings = EvalConfig()
    settings.paths.cache_dir = str(tiny.folder / "cache")
    found = score(settings, report.folder)
    assert found["documents"] == 13  # held out of 200 numbers
    assert found["loss"] == pytest.approx(report.validation["val/loss"], abs=0.2)  # of other masks


@pytest.mark.slow
def test_warnings_of_the_text_count_the_steps_that_read_it(tiny, capsys) -> None:
    """The whole run has the tokens of many epochs, of which other stages read another text."""
    for name in ("first", "second"):
        (tiny.folder / f"{name}.txt").write_text("\n\n".join(f"{name} {number}" for number in range(40)))
    words = [f"data.path={tiny.folder / 'first.txt'}", "data.separator='\\n\\n'", "trainer.max_steps=40"]
    text = [f"stages.b.data.path={tiny.folder / 'second.txt'}", "stages.b.until_steps=40"]
    train(tiny.plan(*words, "batch_size=4", "stages.a.until_steps=2", *text))
    warned = [line for line in capsys.readouterr().out.splitlines() if "the run reads" in line]
    assert len(warned) < 2
    assert all("the run reads 256 tokens" in line for line in warned)


@pytest.mark.slow
def test_an_objective_of_a_later_stage_is_refused_before_the_first_step(tiny, assets: Path) -> None:
    """Its tokenizer is known once the text is prepared; the first stage would have trained for nothing."""
    words = ["model=llama_nano", "tokenizer=pretrained", f"tokenizer.path={assets / 'tokenizers' / 'gpt2'}"]
    plan = tiny.plan(*words, "stages.a.until_steps=3", "stages.b.objective.kind=hybrid")
    with pytest.raises(ConfigError, match=r"in stages\.b: objective=hybrid needs a tokenizer with a mask token"):
        train(plan)
    assert not list(plan.folder.glob("checkpoints/step-*"))


@pytest.mark.slow
def test_stages_of_a_run_whose_length_follows_from_its_text_are_known(tiny) -> None:
    words = ["model=modernbert_nano", "trainer.max_steps=null", "stages.a.until_fraction=0.5"]
    config = compose("train", [*words, "data=text_files", "data.path=a", "stages.b.data.path=b"])
    assert [text.path for text in texts_of(config)] == ["a", "b"]  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stages.c.model.n_layers=3"], r"stages\.c\.model\.n_layers cannot change inside a run\. Did you mean"),
        (["stages.c.divergence.max_rewinds=3"], r"cannot change .* for the whole run: divergence\.max_rewinds=3\."),
        (["stages.c.optimizer.kind=adamw"], r"optimizer\.kind cannot .* Give it for the whole run: optimizer=adamw\."),
        (["stages.b.modle.context_length=3"], r"cannot change inside a run\. Did you mean model\.context_length"),
        (["stages.b.until_fraction=0.4"], r"is step 40, not after the end of stages\.a, step 50\. Try a later end"),
        (
            ["stages.b.until_steps=4"],
            r"stages\.b\.until_steps=4 and stages\.b\.until_fraction=0\.8 give one end in two",
        ),
        (["stages.b.until_fraction=null"], r"stages\.b has no end, and another stage follows\. Give one"),
        (["stages.b.until_fraction=1.5"], r"stages\.b\.until_fraction=1\.5 is not a share above 0"),
        (["stages.a={until_steps: x}"], r"stages\.a\.until_steps=x is not a whole number\. Try"),
        (["stages.a.until_steps=nan"], r"stages\.a\.until_steps=nan is not a whole number\. Try"),
        (["stages.a.until_tokens=1e400"], r"stages\.a\.until_tokens=inf is not a whole number\. Try"),
        (["stages.a.until_fraction=nan"], r"stages\.a\.until_fraction=nan is not a share above 0"),
        (["stages.c.schedule=wsd"], r"stages\.c\.schedule=wsd is not a mapping.* Try stages\.c\.schedule\.kind=wsd"),
        (["stages.c.objective=masked_30"], r"Try stages\.c\.objective\.kind=masked, which has the defaults of its"),
        (["stages.c.schedule=null"], r"stages\.c\.schedule=null is not a mapping"),
        (["stages.c.until_steps=90"], r"is step 90, and the run ends at step 100: the steps between have no stage"),
        (["stages.b.model.context_length=abc"], r"stages\.b\.model\.context_length=abc does not fit: Value 'abc'"),
        (["stages.b.batch_size=7", "micro_batch_size=8"], r"in stages\.b: batch_size=7 is not a whole number of micro"),
        (["stages.a.objective.kind=causal"], r"objective\.kind=causal attends in another direction than"),
        (
            ["stages.b={model.rope_base: 1e6, model: {rope_base: 1e5}}"],
            r"stages\.b\.model\.rope_base=1000000\.0 is set twice, under one name with points and in a mapping",
        ),
        (["stages.d=3"], r"stages\.d=3 is not a mapping\. Try"),
        (["stages={a b: {until_steps: 3}}"], r"stages\.a b is not a name for a stage.*Try stages\.a_b"),
        (["trainer.max_epochs=2"], r"trainer\.max_epochs=2 counts passes over rows, and with stages"),
        (
            ["trainer.max_steps=-1", "trainer.max_time=1"],
            r"until_fraction=0\.5 is a part of a run that ends by the clock",
        ),
        (["data=text_files", "data.path=x", "data.mode=stream"], r"stages\.b changes the rows .* data\.mode=stream"),
        (
            ["model.position=learned"],
            r"context_length=512 needs positions that model\.position=learned has no weights for",
        ),
        (
            ["batch_warmup_rows=2"],
            r"batch_warmup_rows=2 is half of a warm-up of the batch.*batch_warmup_tokens=1000000",
        ),
        (["batch_warmup_tokens=9"], r"batch_warmup_tokens=9 is half of a warm-up.*batch_warmup_rows=2"),
        (
            ["batch_warmup_rows=3", "batch_warmup_tokens=9", "micro_batch_size=4"],
            r"batch_warmup_rows=3 must be below batch_size=8 and a multiple of 2.*Try batch_warmup_rows=2",
        ),
        (
            ["batch_warmup_rows=3", "batch_warmup_tokens=9", "micro_batch_size=1"],
            r"Try batch_size=32 batch_warmup_rows=8",
        ),
    ],
)
def test_what_no_run_can_have_is_refused_before_it_starts(tiny, words: list[str], message: str) -> None:
    stages = [
        "model=modernbert_nano", "trainer.max_steps=100", "stages.a.until_fraction=0.5", "stages.b.until_fraction=0.8",
        "stages.b.model.context_length=512", "stages.c.optimizer.learning_rate=1e-4",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        compose("train", [*stages, *words])
