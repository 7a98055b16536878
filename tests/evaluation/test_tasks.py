"""Tasks with correct answers: metrics computed by hand, and on real data with transformers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import random_model, shape
from folders import BYTES, quiet_transformers

from pretrain.config.compose import compose, register_schemas
from pretrain.config.renamed import with_current_name
from pretrain.errors import ConfigError
from pretrain.evaluation.bound import BoundEstimate
from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.examples import Cloze, ExampleSet, MinimalPair, MultipleChoice, read_examples
from pretrain.evaluation.likelihood import Score
from pretrain.evaluation.run import verbatim_metrics
from pretrain.evaluation.scorer import ContinuationScore, Scorer
from pretrain.evaluation.tasks import score_examples, score_tasks
from pretrain.interop.load import open_model
from pretrain.language_model import LanguageModel


class Known:
    """Scorer with fixed likelihoods."""

    causal, bound = True, None

    def __init__(self, likelihoods: dict[str, float]) -> None:
        self.likelihoods = likelihoods

    def texts(self, texts: Sequence[str], group_size: int = 1) -> list[Score]:
        return [Score(self.likelihoods[text], 1, 1) for text in texts]

    def continuations(self, pairs: Sequence[tuple[str, str]], *_: Any, **__: Any) -> list[ContinuationScore]:
        return [
            ContinuationScore(self.likelihoods[text], 1, text.endswith("!"), len(text.encode())) for _, text in pairs
        ]


def known(task: Task, likelihoods: dict[str, float], *examples: Any) -> dict[str, float]:
    scorer: Any = Known(likelihoods)
    return score_examples(scorer, ExampleSet("x", task, examples))


def bits(nats: float, text_bytes: int) -> Any:
    return pytest.approx(nats / math.log(2) / text_bytes)


def test_pairs_count_by_paradigm_and_a_tie_is_not_right() -> None:
    likelihoods = {"a": -1.0, "b": -2.0, "c": -2.0}
    pairs = [MinimalPair("a", "b", "p"), MinimalPair("b", "a", "p"), MinimalPair("b", "c", "p")]
    found = known(Task.minimal_pairs, likelihoods, *pairs, MinimalPair("a", "b", "q"))
    third = pytest.approx(1 / 3)
    assert found == {"accuracy": pytest.approx(2 / 3), "pairs": 4, "ties": 1, "p/accuracy": third, "q/accuracy": 1.0}


def test_a_phenomenon_counts_its_paradigms_alike() -> None:
    pairs = [MinimalPair("a", "b", "p", "binding"), MinimalPair("b", "a", "q", "binding")]
    pairs += [MinimalPair("b", "a", "q", "binding"), MinimalPair("a", "b", "r", "islands")]
    found = known(Task.minimal_pairs, {"a": -1.0, "b": -2.0}, *pairs)
    assert found["phenomenon/binding"] == 0.5
    assert found["phenomenon/islands"] == 1.0
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert list(found)[3:5] == ["phenomenon/binding", "phenomenon/islands"]  # before the paradigms


def test_choices_are_compared_as_they_are_and_by_the_byte() -> None:
    question = MultipleChoice("?", (" no", " certainly"), (2, 9), gold=1)
    found = known(Task.multiple_choice, {" no": -4.0, " certainly": -9.0}, question)
    assert found == {"accuracy": 0.0, "accuracy_per_byte": 1.0, "bits_per_byte": bits(9.0, 10), "questions": 1}


def test_the_perplexity_of_continuations_counts_each_once() -> None:
    found = known(Task.cloze, {"a!": -1.0, "b": -3.0}, Cloze("", "a!"), Cloze("", "b"))
    perplexity, per_byte = pytest.approx(math.e**2), bits(4.0, 3)
    assert found == {"accuracy": 0.5, "loss": 2.0, "perplexity": perplexity, "bits_per_byte": per_byte, "passages": 2}


@pytest.mark.parametrize(("family", "causal"), [("gpt", True), ("bert", False)])
def test_tasks_of_a_model_in_training(family: str, causal: bool) -> None:
    """The keys are those of the curves, and the model stays as it was."""
    model = random_model(shape(family, dropout=0.5), BYTES.vocab_size, causal).train()
    pairs = ExampleSet("blimp", Task.minimal_pairs, [MinimalPair("ab", "ba", "p", "x"), MinimalPair("c", "dd", "q")])
    choice = ExampleSet("arc", Task.multiple_choice, [MultipleChoice("ab", (" c", " d"), (1, 1), 0)])
    before = torch.get_rng_state()
    found = score_tasks(model, BYTES, [pairs, choice])
    of_choices = {"eval/arc/accuracy", "eval/arc/accuracy_per_byte"}
    per_byte = "eval/arc/bits_per_byte" if causal else "eval/arc/pseudo_bits_per_byte"
    assert set(found) == {"eval/blimp/accuracy", "eval/blimp/phenomenon/x", *of_choices, per_byte}
    assert found == pytest.approx(score_tasks(model, BYTES, [pairs, choice], batch_tokens=1), rel=1e-6)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    weight = model.embeddings.tokens.weight
    model(torch.tensor([[3, 4, 5]])).sum().backward()  # nothing of the scoring stands in the way
    assert weight.grad is not None


def test_what_a_masked_model_cannot_do_is_refused() -> None:
    scorer = Scorer(random_model(shape("bert"), BYTES.vocab_size, causal=False), BYTES)
    with pytest.raises(ConfigError, match=r"task=cloze needs a causal model, and this one was trained to fill masks"):
        score_examples(scorer, ExampleSet("x", Task.cloze, [Cloze("a", "b")]))
    for bound, task in ((None, "pseudo_perplexity"), (BoundEstimate(shift_targets=True), "documents")):
        scorer = Scorer(scorer.model, BYTES, bound=bound)
        with pytest.raises(ConfigError, match=rf"task=memorization needs a causal model, .* task={task}\."):
            verbatim_metrics(scorer, [np.arange(4)], 2)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_what_is_repeated_is_what_greedy_generation_repeats(family: str) -> None:
    model = random_model(shape(family), BYTES.vocab_size, causal=True)
    llm = LanguageModel(model, BYTES)
    prompts = [[BYTES.bos_id, *b"The"], [BYTES.bos_id, *b"fox"], [BYTES.bos_id, *b"abc"]]
    said = [list(each.tokens) for each in llm.complete(prompts, temperature=0, max_new_tokens=6)]
    assert all(len(tokens) == 6 for tokens in said)
    documents = [np.array(prompt + tokens) for prompt, tokens in zip(prompts, said, strict=True)]
    documents[1][4 + 2] = (documents[1][4 + 2] + 1) % 256  # the third new token differs
    documents[2][4] = (documents[2][4] + 1) % 256  # the first
    found = verbatim_metrics(Scorer(model, BYTES), documents, 6)
    assert found == {"exact_match": pytest.approx(1 / 3), "verbatim_tokens": pytest.approx(8 / 3), "documents": 3}


def stories(assets: Path) -> Path:
    return assets / "models" / "stories260K" / "hf"


def real(assets: Path) -> Scorer:
    folder = open_model(stories(assets))
    return Scorer(folder.load().eval(), folder.tokenizer, folder.starts_with_bos)


@torch.no_grad()
def by_transformers(assets: Path, rows: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Return for each context and continuation its log-likelihood and whether it is greedy, text by text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(stories(assets))
        model = AutoModelForCausalLM.from_pretrained(stories(assets)).eval()
    found = []
    for context, continuation in rows:
        before = [1, *tokenizer.encode(context, add_special_tokens=False)]
        whole = torch.tensor([[1, *tokenizer.encode(context + continuation, add_special_tokens=False)]])
        logits = model(whole).logits[0, :-1].log_softmax(-1)[len(before) - 1 :]
        new = whole[0, len(before) :]
        likely = logits.gather(1, new.unsqueeze(1)).double().sum()
        found.append((float(likely), bool((logits.argmax(-1) == new).all())))
    return found


@pytest.mark.long
def test_blimp_is_what_transformers_makes_of_it(assets: Path) -> None:
    blimp = read_examples(Task.minimal_pairs, str(assets / "eval" / "blimp" / "blimp.jsonl.xz"), max_examples=500)
    found = score_examples(real(assets), blimp)
    assert found["pairs"] == 500
    assert len(found) == 3 + 13 + 67
    pairs = [pair for pair in blimp.examples if isinstance(pair, MinimalPair)]
    theirs = by_transformers(assets, [("", text) for pair in pairs for text in (pair.good, pair.bad)])
    ours = real(assets).texts([text for pair in pairs for text in (pair.good, pair.bad)])
    for score, (expected, _) in zip(ours, theirs, strict=True):
        assert score.log_likelihood == pytest.approx(expected, rel=1e-5)
    correct: dict[str, list[bool]] = {}
    for pair, good, bad in zip(pairs, theirs[::2], theirs[1::2], strict=True):
        correct.setdefault(pair.paradigm, []).append(good[0] > bad[0])
    assert found["accuracy"] == pytest.approx(np.mean([np.mean(each) for each in correct.values()]))


@pytest.mark.slow
def test_lambada_and_arc_are_what_transformers_makes_of_them(assets: Path) -> None:
    scorer = real(assets)
    lambada = read_examples(Task.cloze, str(assets / "eval" / "lambada" / "lambada_openai.jsonl"), max_examples=60)
    passages = [(each.context, each.continuation) for each in lambada.examples if isinstance(each, Cloze)]
    theirs = by_transformers(assets, passages)
    found = score_examples(scorer, lambada)
    assert found["accuracy"] == pytest.approx(np.mean([greedy for _, greedy in theirs]))
    text_bytes = sum(len(text.encode()) for _, text in passages)
    assert found["bits_per_byte"] == bits(-sum(likely for likely, _ in theirs), text_bytes)
    assert math.log(found["perplexity"]) == pytest.approx(-np.mean([likely for likely, _ in theirs]), rel=1e-5)
    arc = read_examples(Task.multiple_choice, str(assets / "eval" / "arc_easy" / "arc_easy.jsonl"), max_examples=60)
    questions = [each for each in arc.examples if isinstance(each, MultipleChoice)]
    scores = iter(by_transformers(assets, [(each.query, text) for each in questions for text in each.continuations]))
    correct = [np.argmax([next(scores)[0] for _ in each.continuations]) == each.gold for each in questions]
    assert score_examples(scorer, arc)["accuracy"] == pytest.approx(np.mean(correct))


def test_the_masked_score_is_the_pseudo_likelihood_of_transformers(tmp_path: Path) -> None:
    """A BERT with random weights: both sentences of a pair, each token hidden in a forward pass of its own."""
    from folders import lively_weights, write_theirs
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=BYTES.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    with quiet_transformers():
        theirs = lively_weights(BertForMaskedLM(config))
        folder = open_model(write_theirs(tmp_path / "bert", theirs))
    texts = ["Cats sleep.", "Cats sleeps.", "a", "The quick brown fox"]
    found = Scorer(folder.load().eval(), folder.tokenizer, batch_tokens=100).texts(texts)
    for text, score in zip(texts, found, strict=True):
        row = torch.tensor([BYTES.bos_id, *text.encode(), BYTES.eos_id])
        total = 0.0
        for place in range(1, len(row) - 1):
            hidden = row.clone()
            hidden[place] = BYTES.mask_id
            with torch.no_grad():
                total += float(theirs(hidden.unsqueeze(0)).logits[0, place].double().log_softmax(-1)[row[place]])
        assert score.log_likelihood == pytest.approx(total, rel=1e-5)
    json.dumps(score_examples(Scorer(folder.load(), folder.tokenizer), ExampleSet(
        "x", Task.minimal_pairs, [MinimalPair(texts[0], texts[1], "p")])))  # fmt: skip


def test_the_earlier_spelling_of_a_task_is_read() -> None:
    register_schemas("eval", EvalConfig)
    assert compose("eval", [with_current_name("task=memorisation")]).task is Task.memorization
