"""Runs on a mixture: exact shares, exact resume, and scores by source."""

import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pretrain.checkpoint.read import open_checkpoint
from pretrain.data.collate import IGNORE
from pretrain.data.prepare import prepare
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score_documents
from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import read_rows
from pretrain.training.config import PathsConfig
from pretrain.training.datamodule import TextDataModule
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.train import run

SHARES = {"numbers": 0.3, "words": 0.7}


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Return a folder of twenty files of numbers: digits tell their rows from those of the words."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    draw = random.Random(1)
    for count in range(20):
        (folder / f"{count}.txt").write_text("".join(draw.choice("0123456789") for _ in range(draw.randint(20, 90))))
    return folder


@pytest.fixture
def mixed(tiny, corpus: Path, numbers: Path):
    """Return a maker of tiny runs on words and numbers."""
    sources = (
        f"{{words: {{kind: text_files, path: {corpus}, weight: 0.7}}, "
        f"numbers: {{kind: text_files, path: {numbers}, weight: 0.3, validation_fraction: 0.2}}}}"
    )
    tiny.words[:2] = ["data=mixture", f"data.sources={sources}", "data.max_validation_rows=0"]
    return tiny


def read_by(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list to which every training batch adds its tokens."""
    seen: list[torch.Tensor] = []
    original = TrainingModule.training_step

    def watched(self, batch, batch_index):
        seen.append(batch.tokens)
        return original(self, batch, batch_index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    return seen


def source_of(row: torch.Tensor) -> str:
    text = bytes(token for token in row.tolist() if token < 256).decode()
    return "numbers" if text.isdigit() else "words"


def figures_of(folder: Path) -> dict[str, float]:
    return {row["name"]: float(row["value"]) for row in read_rows(folder / "metrics.csv")}


@pytest.mark.slow
def test_a_mixture_follows_its_shares_and_resumes_bit_for_bit(mixed, monkeypatch, capsys):
    seen = read_by(monkeypatch)
    whole = run(mixed.plan("model=gpt_nano", f"paths.run_dir={mixed.folder / 'whole'}"))
    out = capsys.readouterr().out
    assert "tokens of data (numbers 30.0%, words 70.0%)" in out
    assert out.index("source numbers: tokenized") < out.index("source words: tokenized")

    drawn = dict.fromkeys(SHARES, 0)
    for step, tokens in enumerate(seen, start=1):
        for row in tokens:
            drawn[source_of(row)] += 1
        assert all(abs(drawn[name] - share * 4 * step) < 2 for name, share in SHARES.items())
    assert drawn == {"numbers": 14, "words": 34}

    folder = Path(whole.folder)
    shutil.copytree(folder, mixed.folder / "cut")
    shutil.rmtree(mixed.folder / "cut" / "checkpoints" / "step-00000012")
    before, seen[:] = list(seen), []
    again = run(mixed.plan("model=gpt_nano", f"paths.run_dir={mixed.folder / 'cut'}", "resume=auto"))
    assert all(torch.equal(a, b) for a, b in zip(seen, before[8:], strict=True))
    one, other = open_checkpoint(folder), open_checkpoint(Path(again.folder))
    assert one.progress | {"seconds": 0} == other.progress | {"seconds": 0}
    for part in ("model", "optimizer", "random"):
        a, b = one.tensors(part), other.tensors(part)
        assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())
    assert whole.validation == again.validation

    assert_figures_of_all_sources_are_those_of_scoring(mixed, folder, whole.validation)
    assert "    words            loss " in str(whole)
    assert "    numbers          loss " in str(whole)
    assert "data mixture of numbers, words)" in repr(LanguageModel.load(folder))
    assert_tensorboard_shows(
        folder, {f"loss/{name}/{figure}" for name in SHARES for figure in ("loss", "bits_per_byte")}
    )
    assert_a_change_of_the_mixture_is_refused(mixed)


def assert_figures_of_all_sources_are_those_of_scoring(mixed, folder: Path, found: dict[str, float]) -> None:
    """Training and `src/eval.py` come to the same, and bits per byte are all bits over all bytes of the text."""
    names = ["loss", "perplexity", "accuracy", "bits_per_byte"]
    own = [f"{source}/{figure}" for source in SHARES for figure in ("loss", "bits_per_byte")]
    assert list(found) == [f"val/{name}" for name in names + own]
    assert found.items() <= figures_of(folder).items()
    cache = mixed.folder / "cache"
    scored = score_documents(EvalConfig(paths=PathsConfig(cache_dir=str(cache))), folder)
    for key, value in found.items():
        assert scored[key.removeprefix("val/")] == pytest.approx(value, rel=1e-5)
    run_config = mixed.config("model=gpt_nano")
    prepared = prepare(run_config.data, run_config.tokenizer, cache)
    stores = prepared.validation
    nats = 0.0
    for name, store in stores.items():
        assert scored[f"{name}/documents"] == store.n_documents
        assert scored[f"{name}/targets"] == store.n_tokens - store.n_documents
        bits = scored[f"{name}/loss"] * scored[f"{name}/targets"] / math.log(2)
        assert found[f"val/{name}/bits_per_byte"] == pytest.approx(bits / store.text_bytes, rel=1e-5)
        nats += scored[f"{name}/loss"] * scored[f"{name}/targets"]
    text_bytes = sum(store.text_bytes for store in stores.values())
    assert found["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert found["val/loss"] == pytest.approx(nats / scored["targets"], rel=1e-5)


def assert_tensorboard_shows(folder: Path, tags: set[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, validation = (EventAccumulator(str(path)).Reload() for path in (folder, folder / "validation"))
    assert tags <= set(validation.Tags()["scalars"])
    settings = [data.plugin_data.content for data in events.summary_metadata.values()]
    assert any(b"data.sources.words.weight" in content for content in settings)


def assert_a_change_of_the_mixture_is_refused(mixed) -> None:
    words = ["model=gpt_nano", f"paths.run_dir={mixed.folder / 'whole'}", "resume=auto"]
    with pytest.raises(ConfigError, match=r"data\.sources\.words\.weight: 0\.7 in the run, 0\.5 now"):
        mixed.plan(*words, "data.sources.words.weight=0.5")
    with pytest.raises(ConfigError, match=r"data\.sources\.more: null in the run, \{'kind': 'python_docs'"):
        mixed.plan(*words, "data.sources.more={kind: python_docs, weight: 1}")
    allowed = mixed.plan(*words, "data.sources.words.weight=0.5", "allow_change=[data.sources.words.weight]")
    assert allowed.config.data.sources["words"].weight == 0.5
    (mixed.folder / "numbers" / "0.txt").write_text("123")
    with pytest.raises(DataError, match="was trained with data_fingerprint"):
        run(mixed.plan(*words, "trainer.max_steps=14"))


@pytest.mark.slow
def test_a_masked_mixture_warns_of_repeats_and_scores_sources(mixed, corpus, numbers, capsys):
    sources = (
        f"{{words: {{kind: text_files, path: {corpus}, epochs: 1}}, "
        f"numbers: {{kind: text_files, path: {numbers}, epochs: 10}}}}"
    )
    mixed.words[1] = f"data.sources={sources}"
    words = ["model=bert_nano", "data.max_validation_rows=8", "data.validation_fraction=0.3", "micro_batch_size=2"]
    report = run(mixed.plan(*words, "trainer.max_steps=50", "tokenizer=bpe", "tokenizer.vocab_size=270"))
    out = capsys.readouterr().out
    assert "warning: source numbers would be read " in out
    assert "warning: source words" not in out
    own = [f"val/{source}/{figure}" for source in SHARES for figure in ("loss", "accuracy")]
    assert list(report.validation) == ["val/loss", "val/perplexity", "val/accuracy", *own]


@pytest.mark.slow
def test_each_source_scores_its_share_of_the_most_rows(mixed):
    config = mixed.config("data.max_validation_rows=5", "data.validation_fraction=0.3", "model=gpt_nano")
    prepared = prepare(config.data, config.tokenizer, mixed.folder / "cache")
    sizes = config.batch_sizes()
    data = TextDataModule(config, prepared, config.objective.build(prepared.tokenizer, config.seed), sizes)
    for ranks in (1, 2):
        scored = []
        for rank in range(ranks):
            data.trainer = SimpleNamespace(
                world_size=ranks, distributed_sampler_kwargs={"rank": rank, "num_replicas": ranks}
            )
            loaders = data.val_dataloader()
            scored.append([sum(int((b.targets != IGNORE).any(1).sum()) for b in loader) for loader in loaders])
        assert [sum(counts) for counts in zip(*scored, strict=True)] == [2, 4]  # of 5: round(1.5) and round(3.5)


@pytest.mark.slow
def test_two_files_are_validated_and_a_store_without_validation_is_named(mixed, tmp_path, capsys):
    """The loss of all is that of every source; where it is not, the run says whose it is."""
    small = tmp_path / "small"
    small.mkdir()
    for number in range(2):
        (small / f"{number}.txt").write_text(f"a line of text {number}\n" * 30)
    mixed.words.append(f"data.sources.numbers.path={small}")
    mixed.words.append("data.sources.numbers.validation_fraction=0.05")
    words = ["model=gpt_nano", "trainer.max_steps=2"]
    report = run(mixed.plan(*words))
    out = capsys.readouterr().out
    assert "val/numbers/loss" in report.validation
    assert "warning: the validation of source numbers has 36 tokens: too few to compare runs. Try a larger" in out
    (line,) = [line for line in str(report).splitlines() if line.startswith("    numbers  ")]
    assert line.endswith("35 tokens: too few to compare runs")
    assert "alone" not in str(report)

    config = mixed.config(*words)
    folder = prepare(config.data, config.tokenizer, mixed.folder / "cache").corpora["numbers"].folder
    done = json.loads((folder / "done.json").read_text())
    done["documents"]["validation"] = 0
    (folder / "done.json").write_text(json.dumps(done))
    again = run(mixed.plan(*words, f"paths.run_dir={mixed.folder / 'again'}"))
    out = capsys.readouterr().out
    assert f"warning: source numbers has no validation: the store {folder} holds nothing out;" in out
    assert "val/loss is that of words alone." in out
    assert f"    numbers          none: the store {folder} holds nothing out" in str(again)
    (line,) = [line for line in str(again).splitlines() if "validation loss  " in line]
    assert line.startswith(f"  validation loss    {again.validation['val/loss']:.4f} (of words alone; ")
    saved = json.loads((mixed.folder / "again" / "report.json").read_text())
    assert saved["validation"]["val/numbers/loss"] is None
    assert saved["validation"]["val/loss"] == again.validation["val/words/loss"]
