"""A run on prepared token stores is the run on their text, bit for bit, and goes on where it was stopped."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import TinyRun

from pretrain.checkpoint.read import open_checkpoint
from pretrain.data.prepare import prepare
from pretrain.data.token_store.prepared_folder import write_prepared
from pretrain.evaluation.inspect_step import rows_of_step
from pretrain.launch.run_folder import read_rows
from pretrain.training.train import run


def losses(folder: Path) -> list[tuple[str, str, str]]:
    rows = read_rows(folder / "metrics.csv")
    return [(row["step"], row["name"], row["value"]) for row in rows if "loss" in row["name"]]


@pytest.mark.slow
def test_a_run_on_stores_is_the_run_on_their_text(tiny: TinyRun) -> None:
    from_text = Path(run(tiny.plan(f"paths.run_dir={tiny.folder / 'text'}")).folder)
    config = tiny.config()
    made = prepare(config.data, config.tokenizer, Path(config.paths.cache_dir), lambda line: None)
    rows = [row.pieces for row in rows_of_step(from_text, 3)]
    stores, cache = tiny.folder / "stores", tiny.folder / "cache"
    write_prepared(stores, made.corpora[""].folder, config.data.validation_fraction)
    shutil.rmtree(cache)
    tiny.words[:3] = ["data=prepared", f"data.path={stores}"]
    whole = Path(run(tiny.plan(f"paths.run_dir={tiny.folder / 'whole'}")).folder)
    assert not cache.exists() or not list(cache.glob("stores/*"))
    assert losses(whole) == losses(from_text) != []
    assert [row.pieces for row in rows_of_step(whole, 3)] == rows

    cut = Path(shutil.copytree(whole, tiny.folder / "cut"))
    shutil.rmtree(cut / "checkpoints" / "step-00000012")
    again = Path(run(tiny.plan(f"paths.run_dir={cut}", "resume=auto")).folder)
    one, other, text = open_checkpoint(whole), open_checkpoint(again), open_checkpoint(from_text)
    assert one.progress["data_fingerprint"] == text.progress["data_fingerprint"]
    for part in ("model", "optimizer", "random"):
        a, b, c = one.tensors(part), other.tensors(part), text.tensors(part)
        assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a.keys() | b.keys())
