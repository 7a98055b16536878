"""Scores of tasks during training equal those computed afterwards, and do not change training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.serialize import from_dict, to_dict
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig, ScoresConfig, Task
from pretrain.evaluation.run import score
from pretrain.interop.load import build
from pretrain.launch.run_folder import read_rows
from pretrain.models.init import initialize
from pretrain.reports.write import write_report
from pretrain.training.callbacks.checkpoints import Checkpoints
from pretrain.training.callbacks.sample_prompts import SamplePrompt
from pretrain.training.callbacks.samples import Writer
from pretrain.training.callbacks.scores import Scores, open_haystacks, open_tasks, open_vector_tasks
from pretrain.training.throughput import Throughput
from pretrain.training.train import run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return a file of examples for each task."""
    records: dict[str, Any] = {
        "minimal_pairs": {
            "sentence_good": "the fox jumps",
            "sentence_bad": "fox the jumps",
            "UID": "order",
            "linguistics_term": "word_order",
        },
        "multiple_choice": {"query": "birds", "choices": ["sing", "jump"], "gold": 0},
        "cloze": {"context": "the lazy", "continuation": "d"},
    }
    for name, record in records.items():
        (tmp_path / f"{name}.jsonl").write_text(2 * (json.dumps(record) + "\n"))
    sts = tmp_path / "sts.tsv"
    sts.write_text("sentence1\tsentence2\tscore\nthe fox\ta fox\t5\nthe fox\tgold\t0\nthe sun\tsun\t4\n")
    retrieval = tmp_path / "foxes"
    (retrieval / "qrels").mkdir(parents=True)
    (retrieval / "queries.jsonl").write_text('{"_id": "q", "text": "a fox"}\n')
    texts = ("the fox jumps", "gold", "the sun")
    passages = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(texts)]
    (retrieval / "corpus.jsonl").write_text("\n".join(passages))
    (retrieval / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    needle = tmp_path / "long.txt"
    needle.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    others = {"sts": str(sts), "retrieval": str(retrieval), "needle": str(needle)}
    return {name: str(tmp_path / f"{name}.jsonl") for name in records} | others


def words(files: dict[str, str], *tasks: str) -> list[str]:
    return [f"scores.{task}=[{files[task]}]" for task in tasks]


def curves(folder: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in read_rows(Path(folder) / "metrics.csv"):
        if row["name"].startswith("eval/"):
            found.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return found


@pytest.mark.long
@pytest.mark.parametrize("model", ["gpt_nano", "bert_nano"])
def test_a_run_is_scored_on_the_way_and_trains_as_without(tiny: Any, files: dict[str, str], model: str) -> None:
    tasks = ["minimal_pairs", "multiple_choice", "sts", "retrieval"]
    tasks += ["cloze", "needle"] if model == "gpt_nano" else []
    usual = [f"model={model}", "batch_size=4", "micro_batch_size=2", "model.context_length=160"]
    plain = run(tiny.plan(*usual, f"paths.run_dir={tiny.folder / 'plain'}"))
    report = run(
        tiny.plan(*usual, "scores.every_n_steps=5", *words(files, *tasks), f"paths.run_dir={tiny.folder / 'scored'}")
    )
    found = curves(report.folder)
    own = {"sts": f"{Path(files['sts']).parent.name}-sts", "retrieval": "foxes", "needle": "needle-long"}
    names = {task: own.get(task, task) for task in tasks}
    assert {name.split("/")[1] for name in found} == set(names.values())
    assert all(list(curve) == [5, 10, 12] for curve in found.values())
    assert not curves(plain.folder)
    for part in ("model", "optimizer", "random"):
        one, other = (open_checkpoint(Path(each.folder)).tensors(part) for each in (plain, report))
        assert all(torch.equal(one[name], other[name]) for name in one)
    for task in (each for each in tasks if each != "needle"):  # its texts are documents of a corpus then
        afterwards = score(EvalConfig(task=Task[task], path=files[task]), report.folder)
        for name, value in afterwards.items():
            if (key := f"eval/{names[task]}/{name}") in found:
                assert found[key][12] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert "eval/minimal_pairs/accuracy" in found
    per_byte = "bits_per_byte" if model == "gpt_nano" else "pseudo_bits_per_byte"
    assert {"eval/multiple_choice/accuracy_per_byte", f"eval/multiple_choice/{per_byte}"} <= set(found)
    assert {f"eval/{names['sts']}/spearman", "eval/foxes/ndcg@10"} <= set(found)
    assert ("eval/needle-long/accuracy" in found) is (model == "gpt_nano")
    assert "eval/minimal_pairs/phenomenon/word_order" in found
    page = write_report(Path(report.folder)).read_text()
    assert "Tasks that scored the model while it trained" in page
    assert "<td>word order</td>" in page


@pytest.mark.slow
def test_scores_settings_are_typed_and_survive_being_saved(tiny: Any, files: dict[str, str]) -> None:
    config = tiny.config("scores.every_n_steps=5", *words(files, "minimal_pairs", "cloze"), "scores.max_examples=1")
    assert config.scores.files() == [
        (Task.minimal_pairs, files["minimal_pairs"]),
        (Task.cloze, files["cloze"]),
    ]
    assert from_dict(to_dict(config)) == config
    tasks = open_tasks(config.scores, completes=True)
    assert [(each.name, len(each.examples)) for each in tasks] == [("minimal_pairs", 1), ("cloze", 1)]


def test_wrong_files_are_refused_before_the_training(tiny: Any, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scores\.cloze=nowhere does not exist"):
        open_tasks(ScoresConfig(every_n_steps=1, cloze=["nowhere"]), completes=True)
    with pytest.raises(ConfigError, match=r"scores\.cloze=\['x'\] completes passages, and this run trains a model to"):
        open_tasks(ScoresConfig(cloze=["x"]), completes=False)
    long = Path(files["cloze"]).with_name("long.jsonl")
    long.write_text(json.dumps({"context": "a", "continuation": "b" * 2000}))
    config = tiny.config("scores.every_n_steps=1", f"scores.cloze=[{long}]")
    writer, checkpoints = Writer(config, byte_tokenizer()), Checkpoints.__new__(Checkpoints)
    with pytest.raises(
        DataError, match=r"long\.jsonl:1: the continuation ' b+' has 2001 tokens, and this model can score 1 to \d+"
    ):
        Scores(config.scores, writer, Throughput.__new__(Throughput), tmp_path, checkpoints)
    twice = ScoresConfig(minimal_pairs=[files["minimal_pairs"]] * 2)
    with pytest.raises(ConfigError, match="scores names two files called minimal_pairs, whose metrics would collide"):
        open_tasks(twice, completes=True)
    with pytest.raises(ConfigError, match=r"scores\.sts names two files called .*-sts, whose metrics would collide"):
        open_vector_tasks(ScoresConfig(sts=[files["sts"]] * 2))
    with pytest.raises(ConfigError, match=r"scores\.needle=\['x'\] asks a causal model for the number"):
        open_haystacks(ScoresConfig(needle=["x"]), tiny.config("model=bert_nano"), byte_tokenizer())
    for words_, message in (
        ([], r"scores\.needle names two files called needle-long, whose metrics would collide"),
        (
            ["model.context_length=16"],
            r"reads at least \d+ tokens, and model\.context_length=16\. Leave it out",
        ),
        (
            ["model.context_length=65536"],
            r"long\.txt has 9,000 tokens, too few for model\.context_length=65,536",
        ),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            open_haystacks(
                ScoresConfig(needle=[files["needle"]] * (1 if words_ else 2)),
                tiny.config("model.context_length=160", *words_), byte_tokenizer(),
            )  # fmt: skip
    with pytest.raises(DataError, match=r"scores\.needle: nowhere cannot be read as text: .*No such file"):
        open_haystacks(ScoresConfig(needle=["nowhere"]), tiny.config(), byte_tokenizer())
    with pytest.raises(DataError, match=r"cloze\.jsonl has no column sentence1 in its first line"):
        open_vector_tasks(ScoresConfig(sts=[files["cloze"]]))
    assert len(next(iter(open_vector_tasks(ScoresConfig(sts=[files["sts"]], max_examples=2)).values())).pairs) == 2


@pytest.mark.slow
def test_a_model_on_one_device_is_scored_as_it_stands(tiny: Any) -> None:
    model = random_model(shape("gpt"), 259, causal=True)
    assert Writer(tiny.config(), byte_tokenizer()).gathered_model(model) is model


def test_a_model_of_vectors_has_no_samples_and_says_so(tiny: Any) -> None:
    """Its head was not trained with it; of a causal one it wrote text, and a bidirectional one could not fill masks."""
    for direction in ("true", "false"):
        words = ["objective=contrastive", f"objective.left_to_right={direction}", "data=related"]
        config = tiny.config(*words, "sample.prompts=[fox]")
        model = build(config.model, config.objective, byte_tokenizer())
        initialize(model, config.model, seed=0)
        text = Writer(config, byte_tokenizer()).write(model, seed=1)
        assert text.startswith("fox\n    (no sample: this model embeds texts and has no head that predicts tokens.")


def test_samples_of_a_diffusion_run_continue_prompts_and_fill_masks(tiny: Any) -> None:
    config = tiny.config("model=diffusion_nano", "model.context_length=64")
    tokenizer = byte_tokenizer()
    model = build(config.model, config.objective, tokenizer)
    initialize(model, config.model, seed=0)
    prompts = [SamplePrompt("The quick"), SamplePrompt("A [MASK] fox")]
    text = Writer(config, tokenizer, prompts).write(model.train(), seed=1)
    assert "no sample" not in text
    assert text.startswith("The quick")
    assert "\n\nA [MASK] fox\n" in text
    assert model.training
