"""Correlations and retrieval figures are those of their definitions, and unreadable files are named."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.embedding_tasks import (
    SentencePairs,
    ndcg,
    read_retrieval_set,
    read_sentence_pairs,
    score_embeddings,
)
from pretrain.evaluation.run import score
from pretrain.language_model import LanguageModel

ANGLES = {"a": 0.0, "b": 0.3, "c": 0.9, "d": 1.4, "e": 2.2, "f": 2.9}


def embed(texts) -> torch.Tensor:
    return torch.tensor([[math.cos(ANGLES[text]), math.sin(ANGLES[text])] for text in texts])


def beir(folder: Path, qrels: str = "a\tb\t2\na\td\t1\nf\te\t1\nf\tb\t0\n") -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, ids in (("queries", "af"), ("corpus", "bcde")):
        lines = (json.dumps({"_id": text, "text": text}) for text in ids)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_correlations_are_those_of_torchmetrics() -> None:
    pairs, scores = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("e", "f"), ("a", "f")], [5.0, 3, 3, 4, 1, 0]
    cosine = torch.tensor([math.cos(ANGLES[one] - ANGLES[other]) for one, other in pairs])
    found = score_embeddings(embed, SentencePairs(pairs, scores))
    assert found["spearman"] == pytest.approx(float(spearman_corrcoef(cosine, torch.tensor(scores))), abs=1e-6)
    assert found["pearson"] == pytest.approx(float(pearson_corrcoef(cosine, torch.tensor(scores))), abs=1e-6)
    same = score_embeddings(lambda texts: torch.ones(len(texts), 1), SentencePairs(pairs, scores))
    assert same["spearman"] == 0.0


def test_retrieval_ranks_by_similarity(tmp_path: Path) -> None:
    found = score_embeddings(embed, read_retrieval_set(str(beir(tmp_path / "set"))))
    first = (2 + 1 / math.log2(4)) / (2 + 1 / math.log2(3))  # b, c, d, e: relevances 2, 0, 1, 0
    assert found["ndcg@10"] == pytest.approx(np.mean([first, 1.0]))
    assert found["recall@10"] == found["recall@100"] == 1.0
    assert (found["queries"], found["passages"]) == (2, 4)
    assert ndcg([0] * 10 + [1], {"x": 1}) == 0.0


def test_a_query_in_the_corpus_does_not_find_itself(tmp_path: Path) -> None:
    """As in ArguAna: the passage with the id and the text of the query is left out, unless it counts as an answer."""
    folder = beir(tmp_path / "set")
    passages = [{"_id": "a", "title": "", "text": " a "}, {"_id": "f", "text": "c"}, {"_id": "b", "text": "b"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    table = folder / "qrels" / "test.tsv"
    table.write_text("query-id\tcorpus-id\tscore\na\tb\t1\nf\tb\t1\n")
    found = score_embeddings(embed, read_retrieval_set(str(folder)))
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)  # passage f is another text than query f
    table.write_text("query-id\tcorpus-id\tscore\na\ta\t1\n")
    assert score_embeddings(embed, read_retrieval_set(str(folder)))["ndcg@10"] == 1.0


def test_published_sets_with_titles_alone_and_scores_below_zero_are_read(tmp_path: Path) -> None:
    """TREC-COVID has both."""
    folder = beir(tmp_path / "set", "a\tb\t1\na\tc\t-1\n")
    passages = [{"_id": "b", "title": "b", "text": ""}, {"_id": "c", "title": "", "text": "c"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    read = read_retrieval_set(str(folder))
    assert (read.corpus, read.relevance) == ({"b": "b", "c": "c"}, {"a": {"b": 1}})


def test_max_examples_takes_a_part_of_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "sts.tsv"
    table.write_text("sentence1\tsentence2\tscore\na\tb\t5\na\tc\t4\na\td\t3\na\te\t2\n")
    monkeypatch.setattr(LanguageModel, "load", lambda *_, **__: SimpleNamespace(embed_beginnings=embed))
    assert score(EvalConfig(task=Task.sts, path=str(table), max_examples=3), "a run")["pairs"] == 3
    assert score(EvalConfig(task=Task.sts, path=str(table)), "a run")["pairs"] == 4


def test_files_that_cannot_be_scored_are_named(tmp_path: Path) -> None:
    table = tmp_path / "sts.tsv"
    for text, message in (
        ("a\tb\n", "has no column sentence1 in its first line"),
        ("sentence1\tsentence2\tscore\na\tb\n", r"sts\.tsv:2 has 2 columns instead of 3"),
        ("sentence1\tsentence2\tscore\na\tb\tnan\n", r"sts\.tsv:2 has no two sentences with a number as score"),
        ("sentence1\tsentence2\tscore\na\tb\t1\n", "no two different scores"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            read_sentence_pairs(str(table))
    with pytest.raises(DataError, match=r"nowhere\.tsv cannot be read"):
        read_sentence_pairs(str(tmp_path / "nowhere.tsv"))
    with pytest.raises(DataError, match=r"queries\.jsonl cannot be read"):
        read_retrieval_set(str(tmp_path))
    with pytest.raises(DataError, match="names query 'x' and passage 'b'"):
        read_retrieval_set(str(beir(tmp_path / "one", "x\tb\t1\n")))
    with pytest.raises(DataError, match="no relevant passage of any query"):
        read_retrieval_set(str(beir(tmp_path / "two", "a\tb\t0\n")))
    folder = beir(tmp_path / "three")
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"has no qrels/test\.tsv"):
        read_retrieval_set(str(folder))
    (folder / "corpus.jsonl").write_text('{"_id": 1}')
    with pytest.raises(DataError, match=r"corpus\.jsonl:1 is no object like"):
        read_retrieval_set(str(folder))
    (folder / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match=r"corpus\.jsonl has no text"):
        read_retrieval_set(str(folder))
    for task in (Task.sts, Task.retrieval):
        with pytest.raises(ConfigError, match=f"task={task.name} needs a"):
            EvalConfig(task=task)
