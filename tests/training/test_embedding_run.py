"""A base is fine-tuned to embed texts, resumed exactly, and scored."""

import json
import random
import re
from pathlib import Path

import pytest
from same_state import assert_same_state

from pretrain.errors import ConfigError
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.run import score
from pretrain.language_model import LanguageModel
from pretrain.objectives.fine_tuning_config import Pooling
from pretrain.training.train import run

KINDS = ["fox", "tree", "sun", "rain", "salt", "gold"]


def related(path: Path, count: int = 120) -> Path:
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            kind, other = draw.sample(KINDS, 2)
            record = {"anchor": f"{number} {kind}", "positive": f"the {kind} {number}", "negative": f"the {other}"}
            file.write(json.dumps(record) + "\n")
        file.write('{"anchor": "x", "positive": " ", "negative": "y"}\n')
    return path


@pytest.mark.slow
def test_a_base_learns_to_embed_and_resumes_exactly(tiny, tmp_path):
    data = related(tmp_path / "related.jsonl")
    base = run(tiny.plan("model=bert_nano", "model.context_length=64", "model.dropout=0.1")).folder
    keep = [word for word in tiny.words if word.startswith(("paths.", "trainer.", "checkpoint.", "logging."))]
    tiny.words = [*keep, "experiment=embed", "schedule.warmup_steps=2", f"init_from={base}", f"data.path={data}"]
    tiny.words += ["data.negative_columns=[negative]", "objective.dimensions=[8]", "batch_size=8"]
    tiny.words += ["optimizer.learning_rate=0.01", "schedule=constant", "trainer.max_steps=8"]
    whole = run(tiny.plan(f"paths.run_dir={tmp_path / 'whole'}"))
    assert whole.validation["val/loss"] > 0
    run(tiny.plan(f"paths.run_dir={tmp_path / 'cut'}", "trainer.max_steps=5"))
    cut = run(tiny.plan(f"paths.run_dir={tmp_path / 'cut'}", "resume=auto"))
    assert cut.steps == whole.steps == 8
    assert_same_state(Path(whole.folder), Path(cut.folder))
    assert cut.validation == whole.validation
    assert re.search(rf"export(\.py)? checkpoint={re.escape(cut.folder)} output=my_model$", cut.commands()[0])
    llm = LanguageModel.load(whole.folder)
    assert llm.pooling is Pooling.mean
    assert llm.embed(["the fox", "a tree"], normalize=True).shape == (2, 16)
    assert "embeds texts" in repr(llm)
    with pytest.raises(ConfigError, match="this model embeds texts and has no head that predicts tokens"):
        llm.predict_mask("a [MASK]")
    table = tmp_path / "sts.tsv"
    table.write_text("sentence1\tsentence2\tscore\nthe fox\tfox\t5\nthe fox\tgold\t0\nthe sun\tsun\t4\n")
    scored = score(EvalConfig(task=Task.sts, path=str(table)), whole.folder)
    assert -1 <= scored["spearman"] <= 1
    with pytest.raises(ConfigError, match="embeds texts, and task=documents scores predictions of tokens"):
        score(EvalConfig(), whole.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=masked"], "data.kind=related has texts that belong together, and objective=masked does not"),
        (["data=text_files"], "objective=contrastive learns from texts that belong together, and data.kind=text_files"),
        (["objective.dimensions=[16]"], "must each be below model.d_model=16"),
        (["scores.every_n_steps=5", "scores.minimal_pairs=[a]"], "objective=contrastive does not train them"),
        (["trainer=fsdp", "trainer.devices=2", "parallel.tensor_parallel=2"], "compares the rows of all"),
        (
            ["trainer=ddp", "trainer.devices=2", "parallel.context_parallel=2"],
            "objective=contrastive pools those of whole texts. Try parallel.context_parallel=1.",
        ),
    ],
)
def test_settings_that_do_not_suit_each_other_are_refused(tiny, tmp_path, words, message):
    path = f"data.path={related(tmp_path / 'related.jsonl', 4)}"
    start = ["model=bert_nano", "model.d_model=16", "model.n_heads=2", "objective=contrastive", "data=related", path]
    tiny.words = ["batch_size=4"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny.config(*start, *words)
    assert tiny.config(*start, "scores.every_n_steps=5", "scores.sts=[dev.tsv]").scores.sts == ["dev.tsv"]
