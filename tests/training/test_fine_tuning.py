"""A base model is fine-tuned on pairs or labels, by the code of pre-training."""

import json
import random
from pathlib import Path

import pytest
import torch
from same_state import assert_same_state

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.config.scripts import ExportConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.data.collate import IGNORE
from pretrain.data.prepare import prepare
from pretrain.data.train_stream import ShuffledRows
from pretrain.doctor.shrink import shrink
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.evaluation.run import score
from pretrain.interop.export import export_model
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import read_rows
from pretrain.planning.answer import answer
from pretrain.planning.config import PlanConfig
from pretrain.training.report import Report
from pretrain.training.train import run

PAIRS = {"The quick brown": "fox", "The quick brown fox": "jumps"}
GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "dull"]


def pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in PAIRS.items()))
    return path


def reviews(path: Path, count: int, seed: int) -> Path:
    """Write texts whose label is told by one word in them."""
    draw = random.Random(seed)
    lines = []
    for number in range(count):
        label, words = draw.choice([("pos", GOOD), ("neg", BAD)])
        lines.append(f"a {draw.choice(words)} film {number}\t{label}\n")
    path.write_text("".join(lines))
    return path


def tune(tiny, experiment: str, base: Path | None, *words: str) -> list[str]:
    """Return the words of a fine-tuning run; the shape is the base's."""
    keep = [
        word for word in tiny.words if word.startswith(("paths.", "sample.", "trainer.", "batch_size", "checkpoint."))
    ]
    shape = [word for word in tiny.words if word.startswith(("model.", "tokenizer=", "schedule."))]
    tiny.words = [*keep, f"experiment={experiment}", "schedule.warmup_steps=2"]
    start = [f"init_from={base}"] if base else ["model=bert_nano", *shape]
    return [*start, *words]


@pytest.fixture
def base(tiny) -> Path:
    return Path(run(tiny.plan("model=gpt_nano", "model.context_length=64", "model.dropout=0.0")).folder)


@pytest.fixture
def masked_base(tiny) -> Path:
    return Path(run(tiny.plan("model=bert_nano", "model.context_length=64", "model.dropout=0.0")).folder)


def respond_reads(llm: LanguageModel, prompt: str) -> list[int]:
    """Return the ids that a model reads for a prompt to respond to."""
    rows: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm, "complete", lambda given, **options: rows.extend(given) or [])
        llm.respond([prompt])
    return rows[0]


@pytest.mark.slow
def test_a_base_learns_to_answer(tiny, base, tmp_path):
    words = tune(tiny, "instruct", base, f"data.path={pairs(tmp_path)}", "trainer.max_steps=120")
    report = run(tiny.plan(*words, "optimizer.learning_rate=0.01", "checkpoint.every_n_steps=120"))
    llm = LanguageModel.load(report.folder)
    for prompt, response in PAIRS.items():
        assert llm.generate(prompt, temperature=0) == f"{prompt}\n{response}"  # and there the model ends
    assert llm.generate(list(PAIRS), temperature=0, max_new_tokens=10) == [f"{p}\n{r}" for p, r in PAIRS.items()]
    assert llm.respond(list(PAIRS), temperature=0) == list(PAIRS.values())
    assert llm.respond("The quick brown", temperature=0) == "fox"
    assert respond_reads(llm, "a <|endoftext|>") == [llm.tokenizer.bos_id, *llm.tokenizer.encode("a <|endoftext|>")]
    with pytest.raises(ConfigError, match=r"not fine-tuned on pairs of prompt and response: .* Or fine-tune it"):
        LanguageModel.load(base).respond("The quick brown")
    assert open_model(report.folder).run.data.template == "{prompt}\\n{response}"
    with pytest.raises(ConfigError, match=r"this model was not trained to classify texts\. Fine-tune it"):
        llm.classify("x")


@pytest.mark.slow
def test_the_loss_is_of_the_responses_alone(tiny, base, tmp_path):
    """Against a loss worked out by hand from the base's own probabilities, one pair at a time."""
    words = tune(tiny, "instruct", base, f"data.path={pairs(tmp_path)}", "trainer.max_steps=1", "model.dropout=0.0")
    report = run(tiny.plan(*words, "optimizer.learning_rate=1e-9", "batch_size=1", "data.validation_fraction=0"))
    assert report.validation == {}
    llm = LanguageModel.load(base)
    total, count = 0.0, 0
    for prompt, response in PAIRS.items():
        ids = llm.prompt_ids(prompt)
        answer_ids = [*llm.tokenizer.encode(f"\n{response}"), llm.tokenizer.eos_id]
        with torch.no_grad():
            logits = llm.model.head(llm.model(torch.tensor([[*ids, *answer_ids]])))[0]
        likely = logits.log_softmax(-1)[len(ids) - 1 : -1]
        total -= float(likely.gather(1, torch.tensor(answer_ids)[:, None]).sum())
        count += len(answer_ids)
    found = {row["name"]: float(row["value"]) for row in read_rows(Path(report.folder) / "metrics.csv")}
    assert found["train/loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.slow
def test_other_text_is_scored_as_by_the_base(tiny, base, tmp_path):
    """All of it: pairs are packed whole, so that the end of a document that is longer than a row would be left out."""
    words = tune(tiny, "instruct", base, f"data.path={pairs(tmp_path)}", "trainer.max_steps=1", "model.dropout=0.0")
    report = run(tiny.plan(*words, "optimizer.learning_rate=1e-9", "data.validation_fraction=0"))
    (tmp_path / "long.txt").write_text("The quick brown fox jumps. " * 20)
    settings = EvalConfig(path=str(tmp_path / "long.txt"))
    settings.paths.cache_dir = str(tmp_path / "cache")
    of_base, found = (score(settings, path) for path in (base, report.folder))
    assert found["targets"] == of_base["targets"] == 20 * 27 + 1  # the end token, too
    assert found["loss"] == pytest.approx(of_base["loss"], abs=1e-4)


@pytest.mark.slow
def test_texts_that_are_longer_than_a_row_are_counted(tiny, tmp_path, capsys):
    path = tmp_path / "texts.tsv"
    path.write_text("".join(f"{'so ' * 40 * (n == 0)}good {n}\tpos\nbad {n}\tneg\n" for n in range(8)))
    words = tune(tiny, "classify", None, f"data.path={path}", "data.validation_fraction=0", "trainer.max_steps=1")
    run(tiny.plan(*words))
    told = (
        "warning: 1 of 16 examples have more than the 32 tokens of a row, up to 128: the longest text of each loses "
        "its end first. Try a larger model.context_length.\n"
    )
    assert told in capsys.readouterr().out


@pytest.mark.slow
def test_validation_of_pairs_has_no_bits_per_byte(tiny, base, tmp_path):
    path = pairs(tmp_path)
    words = tune(tiny, "instruct", base, f"data.path={path}", f"data.validation_path={path}", "trainer.max_steps=1")
    with pytest.raises(DataError, match="no document is left to train on"):  # each text is in one split only
        run(tiny.plan(*words))
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "a", "response": "b"}\n')
    words = [word for word in words if "validation_path" not in word]
    report = run(tiny.plan(*words, f"data.validation_path={other}"))
    assert set(report.validation) == {"val/loss", "val/perplexity", "val/accuracy"}
    figures = score(EvalConfig(), report.folder)
    assert figures["loss"] == pytest.approx(report.validation["val/loss"], rel=1e-4)
    assert figures["targets"] == 3  # a new line, b, the end


def classified(tiny, tmp_path, base: Path | None, *words: str) -> tuple[Report, Path]:
    train, dev = reviews(tmp_path / "train.tsv", 120, 1), reviews(tmp_path / "dev.tsv", 30, 2)
    words = (f"data.path={train}", f"data.validation_path={dev}", "optimizer.learning_rate=0.01", *words)
    return run(tiny.plan(*tune(tiny, "classify", base, *words))), dev


@pytest.mark.slow
def test_a_masked_base_learns_to_tell_texts_apart(tiny, masked_base, tmp_path, capsys):
    report, dev = classified(tiny, tmp_path, masked_base, "trainer.max_steps=60", "sample.prompts=[a good film 1]")
    said = capsys.readouterr().out
    assert f"new parameters, not from {masked_base}: head.weight, head.bias (2 labels)" in said
    assert set(report.validation) == {"val/loss", "val/accuracy", "val/f1"}
    assert report.validation["val/accuracy"] > 0.9
    assert "macro F1" in str(report)
    assert "perplexity" not in str(report)
    assert report.sample.startswith("a good film 1\n    'pos' ")

    llm = LanguageModel.load(report.folder)
    assert llm.labels == ["neg", "pos"]
    assert repr(llm).startswith("LanguageModel(classifier of 2 labels, ")
    rows = [line.split("\t") for line in dev.read_text().splitlines()]
    answers = llm.classify([text for text, _ in rows])
    assert llm.classify(rows[0][0]) == pytest.approx(answers[0], rel=1e-5)
    said_labels = [max(each, key=each.__getitem__) for each in answers]
    correct = [ours == label for ours, (_, label) in zip(said_labels, rows, strict=True)]
    assert sum(correct) / len(correct) == pytest.approx(report.validation["val/accuracy"])
    assert macro_f1(said_labels, [label for _, label in rows]) == pytest.approx(report.validation["val/f1"])


def macro_f1(answers: list[str], labels: list[str]) -> float:
    """Return the mean over labels of 2 TP / (2 TP + FP + FN), from the counts."""
    found = []
    for name in sorted(set(labels)):
        hits = sum(a == b == name for a, b in zip(answers, labels, strict=True))
        found.append(2 * hits / (answers.count(name) + labels.count(name)))
    return sum(found) / len(found)


@pytest.mark.long
def test_a_base_gives_all_but_the_head(tiny, base, tmp_path):
    report, _ = classified(tiny, tmp_path, base, "trainer.max_steps=1", "optimizer.learning_rate=1e-12")
    config: RunConfig = open_model(report.folder).run
    assert config.objective.left_to_right  # as the base reads
    assert config.objective.labels == ["neg", "pos"]
    saved, before = open_checkpoint(Path(report.folder)).tensors("model"), open_checkpoint(base).tensors("model")
    assert saved.keys() - before.keys() == {"head.weight", "head.bias"}
    for name in before.keys() & saved.keys():
        torch.testing.assert_close(saved[name], before[name], atol=1e-5, rtol=1e-5)
    assert saved["head.weight"].shape == (2, 16)

    again = tune(tiny, "classify", Path(report.folder), *data_of(config), "trainer.max_steps=1")  # has a head already
    second = run(tiny.plan(*again, "optimizer.learning_rate=1e-12"))
    torch.testing.assert_close(
        open_checkpoint(Path(second.folder)).tensors("model")["head.weight"], saved["head.weight"], atol=1e-5, rtol=0
    )
    three = tmp_path / "three.tsv"
    three.write_text("a\tx\nb\ty\nc\tz\n")
    third = run(tiny.plan(*again, f"data.path={three}", "data.validation_path=null"))
    assert LanguageModel.load(third.folder).labels == ["x", "y", "z"]


def data_of(config: RunConfig) -> list[str]:
    return [f"data.path={config.data.path}", f"data.validation_path={config.data.validation_path}"]


@pytest.mark.slow
def test_labels_survive_a_resume_which_is_exact(tiny, tmp_path):
    train = reviews(tmp_path / "train.tsv", 60, 1)
    words = tune(tiny, "classify", None, f"data.path={train}", "data.validation_fraction=0.2", "model.dropout=0.1")
    whole = run(tiny.plan(*words, f"paths.run_dir={tmp_path / 'whole'}"))
    short = run(tiny.plan(*words, f"paths.run_dir={tmp_path / 'cut'}", "trainer.max_steps=8", "schedule=constant"))
    assert short.steps == 8
    constant = run(tiny.plan(*words, f"paths.run_dir={tmp_path / 'flat'}", "schedule=constant"))
    words += ["objective=classify"]  # typed again, labels come from the data as before
    cut = run(tiny.plan(*words, "schedule=constant", f"paths.run_dir={tmp_path / 'cut'}", "resume=auto"))
    assert cut.steps == whole.steps == 12
    assert_same_state(Path(constant.folder), Path(cut.folder))
    assert cut.validation == constant.validation
    assert LanguageModel.load(cut.folder).labels == ["neg", "pos"]
    record = to_dict(open_model(cut.folder).run)
    assert from_dict(record).objective.labels == ["neg", "pos"]


def test_other_labels_than_those_of_the_data_are_refused(tiny, tmp_path):
    train = reviews(tmp_path / "train.tsv", 20, 1)
    words = tune(tiny, "classify", None, f"data.path={train}", "objective.labels=[pos,neg]")
    with pytest.raises(DataError, match=r"objective\.labels=\[pos,neg\], and the training data has .*\[neg,pos\]"):
        run(tiny.plan(*words))


@pytest.mark.slow
def test_requests_that_a_classifier_cannot_serve_are_refused(tiny, tmp_path):
    report, _ = classified(tiny, tmp_path, None, "trainer.max_steps=1")
    llm = LanguageModel.load(report.folder)
    with pytest.raises(ConfigError, match=r"was trained to classify texts, not to embed them"):
        llm.embed("a film")
    for wrong in (llm.generate, llm.predict_mask, llm.score, lambda text: next(llm.stream(text))):
        with pytest.raises(
            ConfigError, match=r"was trained to classify texts \(neg, pos\) and predicts no tokens\. Use"
        ):
            wrong("a [MASK] film")
    with pytest.raises(ConfigError, match=r"was trained to classify texts, not to embed them\. Use its base model"):
        llm.embed("a film")
    for task in ("pseudo_perplexity", "documents"):
        with pytest.raises(ConfigError, match=r"is a classifier, and eval scores predictions of tokens"):
            score(EvalConfig(task=task, path=str(tmp_path / "dev.tsv")), report.folder)
    with pytest.raises(ConfigError, match=r"no supported architecture of transformers computes exactly this model"):
        export_model(ExportConfig(output=str(tmp_path / "out")), report.folder)
    words = tune(tiny, "instruct", Path(report.folder), f"data.path={pairs(tmp_path)}")
    with pytest.raises(ConfigError, match=r"is a classifier and has no head over the vocabulary"):
        run(tiny.plan(*words, "objective=causal"))


@pytest.mark.slow
def test_a_fine_tuned_causal_model_is_exported_as_any_other(tiny, tmp_path):
    shape = ["model=llama_nano", "model.context_length=64", "model.qk_norm=false", "model.dropout=0.0"]
    base = Path(run(tiny.plan(*shape, "model.n_kv_heads=1")).folder)
    words = tune(tiny, "instruct", base, f"data.path={pairs(tmp_path)}", "trainer.max_steps=2")
    folder = run(tiny.plan(*words)).folder
    exported = export_model(ExportConfig(output=str(tmp_path / "out")), folder)
    assert exported.largest_difference is not None
    assert exported.largest_difference < 1e-4
    assert LanguageModel.load(tmp_path / "out").generate("The", temperature=0) == LanguageModel.load(folder).generate(
        "The", temperature=0
    )


@pytest.mark.slow
def test_a_base_that_reads_the_other_way_is_refused(tiny, base, tmp_path):
    train = reviews(tmp_path / "train.tsv", 20, 1)
    words = tune(tiny, "classify", base, f"data.path={train}", "objective.left_to_right=false")
    with pytest.raises(
        ConfigError,
        match=r"objective\.left_to_right=false, and the attention of init_from=.* is the opposite\. Try .*=true",
    ):
        run(tiny.plan(*words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=classify"], r"objective=classify predicts labels of texts, and data\.kind=python_docs has"),
        (["data=labeled", "data.path=x"], r"data\.kind=labeled has labels, and objective=causal does not predict"),
        (["data=pairs", "data.path=x", "objective=masked"], r"data\.kind=pairs trains a causal .* objective=masked"),
        (
            ["data=labeled", "data.path=x", "objective=classify", "scores.every_n_steps=5", "scores.cloze=[x]"],
            r"scores\.every_n_steps=5 scores probabilities of tokens, and objective=classify",
        ),
        (
            ["data=mixture", "objective=masked", "data.packing=whole",
             "data.sources={a: {kind: pairs, path: x, weight: 1}, b: {kind: pairs, path: y, weight: 1}}"],
            r"data\.sources\.a\.kind=pairs trains a causal model",
        ),
        (
            ["data=mixture", "data.sources={a: {kind: pairs, path: x, weight: 1}, b: {kind: python_docs, weight: 1}}"],
            r"data\.packing=best_fit may split .* Try data\.packing=whole",
        ),
        (["experiment=instruct", "data.path=x"], r"model=imported takes shape and tokenizer of the model"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", words)


@pytest.mark.slow
def test_pairs_are_mixed_with_plain_text(tiny, base, corpus, tmp_path):
    sources = f"data.sources={{a: {{kind: pairs, path: {pairs(tmp_path)}, weight: 1, validation_fraction: 0.0}}, "
    sources += f"b: {{kind: text_files, path: {corpus}, weight: 1}}}}"
    words = tune(tiny, "instruct", base, "data=mixture", "data.packing=whole", sources, "trainer.max_steps=2")
    report = run(tiny.plan(*words))
    assert {"val/b/bits_per_byte", "val/bits_per_byte"} < set(report.validation)
    rows = list(rows_of_step(report.folder, 1))
    assert {row.id.partition(":")[0] for row in rows} == {"a", "b"}
    for row in rows:  # what is learned of a pair is its response, of plain text all
        assert all(bool(piece.learned) is row.id.startswith("a:") for piece in row.pieces)
    llm = LanguageModel.load(report.folder)
    assert respond_reads(llm, "The") == [llm.tokenizer.bos_id, *llm.tokenizer.encode("The")]  # no line end after it
    other = f"{{kind: pairs, path: {pairs(tmp_path)}, weight: 1, template: 'Q {{prompt}} A {{response}}'}}"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    (tmp_path / "chat.jsonl").write_text(4 * (json.dumps({"messages": turns}) + "\n"))
    chats = f"+data.sources.d={{kind: chat, path: {tmp_path / 'chat.jsonl'}, weight: 1, validation_fraction: 0.0}}"
    report = run(tiny.plan(*words, f"+data.sources.c={other}", chats))
    assert report.commands()[0].endswith("chat=true")
    two = LanguageModel.load(report.folder)
    message = r"in several templates, '\{prompt\}\\n' and 'Q \{prompt\} A ', so that .* and use generate\(\)"
    with pytest.raises(ConfigError, match=message):
        two.respond("The")


@pytest.mark.slow
def test_doctor_and_plan_refuse_fine_tuning():
    with pytest.raises(ConfigError, match=r"data\.kind=pairs fine-tunes, but doctor\.py checks pre-training only"):
        shrink(compose("train", ["data=pairs", "data.path=x"]))
    register_schemas("plan", PlanConfig)
    with pytest.raises(ConfigError, match=r"objective=classify fine-tunes, and plan counts pre-training"):
        compose("plan", ["data=labeled", "data.path=x", "objective=classify"])
    plan = compose("plan", ["data=pairs", "data.path=/nowhere", "dry_run=false", "device=h100", "trainer=gpu"])
    assert "parameters" in answer(plan)


@pytest.mark.slow
def test_a_pair_whose_prompt_is_longer_than_its_row_is_in_no_row(tiny, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "why " * 40, "response": "so"}) + '\n{"prompt": "a", "response": "b"}\n')
    config = tiny.config("data=pairs", f"data.path={path}", "data.validation_fraction=0", "model=gpt_nano")
    prepared = prepare(config.data, config.tokenizer, tmp_path / "cache", report=lambda line: None)
    for row_length, targets in ((32, [3]), (160, [1, 3])):  # 160 tokens of the prompt: the last place predicts "s"
        stream = ShuffledRows(prepared.train[""], config.data, row_length, 0, seed=0)
        rows = stream.read(torch.arange(len(stream)).numpy())
        assert sorted((rows.next_tokens != IGNORE).sum(1).tolist()) == targets
        again = ShuffledRows(prepared.train[""], config.data, row_length, 0, seed=0)  # its plan from the cache
        assert len(again) == len(stream)
