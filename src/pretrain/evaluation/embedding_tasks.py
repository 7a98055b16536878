"""Tasks of embeddings: similarity of sentences, and retrieval."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.sources.column_files import json_lines
from pretrain.errors import DataError, printable
from pretrain.evaluation.agreement import pearson, spearman
from pretrain.evaluation.examples import spaced

Embed = Callable[[Sequence[str]], Tensor]  # texts to unit vectors (texts, d)

CUTOFF = 10  # of nDCG and recall, as in BEIR
RECALL_CUTOFF = 100
_QUERIES_AT_ONCE = 256
_STS_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences with what people say of their similarity."""

    pairs: list[tuple[str, str]]
    scores: list[float]


@dataclass(frozen=True)
class RetrievalSet:
    """Queries and passages by id, and how well passages answer queries: whole numbers above 0."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevance: dict[str, dict[str, int]]  # by query, then by passage


def read_sentence_pairs(path: str) -> SentencePairs:
    """Return the pairs of a table with tabs that has a heading with sentence1, sentence2 and score, as STS-B of GLUE.

    Quotation marks are text. Raises DataError for a file without such columns, or with a score that is no number.
    """
    pairs, scores = list[tuple[str, str]](), list[float]()
    for origin, row in _table(Path(path), _STS_COLUMNS):
        first, second, score = (row[column] for column in _STS_COLUMNS)
        try:
            number = float(score)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not first.strip() or not second.strip():
            raise DataError(f"{origin} has no two sentences with a number as score: {score[:20]!a}. Remove the line.")
        pairs.append((first, second))
        scores.append(number)
    if len(set(scores)) < 2:
        raise DataError(f"{printable(path)} has {len(pairs)} pairs and no two different scores to be ranked by.")
    return SentencePairs(pairs, scores)


def read_retrieval_set(path: str) -> RetrievalSet:
    """Return the set in a folder of BEIR's layout: queries.jsonl, corpus.jsonl, and qrels/test.tsv or qrels.tsv.

    Source: Thakur et al. 2021, https://arxiv.org/abs/2104.08663. Raises DataError for a missing file or key, and for a
    relevance that names no query or passage of the set. Of a passage the title alone may be there, as in TREC-COVID.
    """
    folder = Path(path)
    queries, corpus = _texts(folder / "queries.jsonl"), _texts(folder / "corpus.jsonl")
    table = next((found for found in (folder / "qrels" / "test.tsv", folder / "qrels.tsv") if found.is_file()), None)
    if table is None:
        raise DataError(f"{printable(path)} has no qrels/test.tsv. Write lines of query-id, corpus-id, score in it.")
    relevance = defaultdict[str, dict[str, int]](dict)
    for origin, row in _table(table, ("query-id", "corpus-id", "score")):
        query, passage, score = row["query-id"], row["corpus-id"], row["score"]
        if query not in queries or passage not in corpus or not score.removeprefix("-").isdecimal():
            raise DataError(
                f"{origin} names query {query!a} and passage {passage!a} with score {score!a}: both must be in "
                "queries.jsonl and corpus.jsonl, and the score a whole number."
            )
        if int(score) > 0:  # TREC-COVID has -1, too, which trec_eval reads as 0
            relevance[query][passage] = int(score)
    if not relevance:
        raise DataError(f"{printable(str(table))} has no relevant passage of any query, so there is nothing to find.")
    return RetrievalSet(queries, corpus, dict(relevance))


def some_pairs(examples: SentencePairs, count: int) -> SentencePairs:
    """Return at most `count` evenly spaced pairs; 0: all."""
    return SentencePairs(list(spaced(examples.pairs, count)), list(spaced(examples.scores, count)))


def similarity_metrics(embed: Embed, examples: SentencePairs) -> dict[str, float]:
    """Return the rank correlation (Spearman) and correlation (Pearson) of the vectors' cosine with people's scores."""
    first, second = (embed([pair[side] for pair in examples.pairs]) for side in (0, 1))
    cosine, scores = (first * second).sum(-1).double().numpy(), np.array(examples.scores)
    return {
        "spearman": spearman(cosine, scores),
        "pearson": pearson(cosine, scores),
        "pairs": len(scores),
    }


def retrieval_metrics(embed: Embed, examples: RetrievalSet) -> dict[str, float]:
    """Return nDCG@10, recall@10 and recall@100, means over the queries that have a relevant passage.

    nDCG discounts a passage's relevance by log2(1 + its rank), as trec_eval does; passages of equal similarity rank as
    in the corpus. A query that stands in the corpus under its own id, as in ArguAna, does not find itself;
    BEIR leaves out every passage with the id of the query.
    """
    passages = list(examples.corpus)
    numbers = {name: number for number, name in enumerate(passages)}
    vectors = embed([examples.corpus[passage] for passage in passages])
    asked = list(examples.relevance)
    found = defaultdict[str, list[float]](list)
    for start in range(0, len(asked), _QUERIES_AT_ONCE):
        names = asked[start : start + _QUERIES_AT_ONCE]
        similarity = embed([examples.queries[name] for name in names]) @ vectors.T
        for row, name in enumerate(names):
            if _holds_query(examples, name):
                similarity[row, numbers[name]] = -torch.inf
        ranked = similarity.argsort(dim=-1, descending=True, stable=True)[:, :RECALL_CUTOFF].tolist()
        for name, order in zip(names, ranked, strict=True):
            relevance = examples.relevance[name]
            gains = [relevance.get(passages[passage], 0) for passage in order]
            found[f"ndcg@{CUTOFF}"].append(ndcg(gains, relevance))
            for cutoff in (CUTOFF, RECALL_CUTOFF):
                found[f"recall@{cutoff}"].append(sum(gain > 0 for gain in gains[:cutoff]) / len(relevance))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {"queries": len(asked), "passages": len(passages)}


def _holds_query(examples: RetrievalSet, name: str) -> bool:
    """Return whether the passage with the id of a query has the query's text, and does not count as its answer."""
    query, passage = (" ".join(texts.get(name, "").split()) for texts in (examples.queries, examples.corpus))
    return query in passage and name not in examples.relevance[name]


def ndcg(gains: Sequence[int], relevance: Mapping[str, int]) -> float:
    """Return nDCG@10 of the relevances of the ranked passages, the best first, and of all that are relevant."""
    best = sorted(relevance.values(), reverse=True)
    dcg, ideal = (sum(gain / math.log2(rank + 2) for rank, gain in enumerate(each[:CUTOFF])) for each in (gains, best))
    return dcg / ideal


def _table(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table with tabs by column, each with its origin; rows that lack columns are an error."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{printable(str(path))} cannot be read: {printable(str(error))}.") from error
    heading = rows[0] if rows else []
    if missing := [column for column in columns if column not in heading]:
        raise DataError(
            f"{printable(str(path))} has no column {missing[0]} in its first line. "
            f"Write lines with tabs, the first one {', '.join(columns)}."
        )
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(heading):
            raise DataError(f"{printable(str(path))}:{number} has {len(row)} columns instead of {len(heading)}.")
        found.append((f"{printable(str(path))}:{number}", dict(zip(heading, row, strict=True))))
    return found


def _texts(path: Path) -> dict[str, str]:
    """Return the texts of a file of BEIR by id, each after its title if it has one."""
    texts = dict[str, str]()
    try:
        with path.open("rb") as file:
            for origin, record in json_lines(file, printable(str(path))):
                if not isinstance(record, dict) or not _is_text(record):
                    raise DataError(f'{origin} is no object like {{"_id": "1", "text": "..."}}. Correct the line.')
                texts[record["_id"]] = _with_title(record)
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror}.") from error
    if not texts:
        raise DataError(f"{printable(str(path))} has no text.")
    return texts


def _is_text(record: Mapping[str, Any]) -> bool:
    title = record.get("title")
    return (
        isinstance(record.get("_id"), str)
        and isinstance(record.get("text"), str)
        and (title is None or isinstance(title, str))
        and bool(_with_title(record))
    )


def _with_title(record: Mapping[str, Any]) -> str:
    return f"{record.get('title') or ''} {record['text']}".strip()


def score_embeddings(embed: Embed, examples: SentencePairs | RetrievalSet) -> dict[str, float]:
    """Return the metrics of vectors on a set of examples."""
    with torch.inference_mode():
        if isinstance(examples, RetrievalSet):
            return retrieval_metrics(embed, examples)
        return similarity_metrics(embed, examples)
