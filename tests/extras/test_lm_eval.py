"""lm-eval with our model gives our scores; needs lm-eval, with its own task files and local data."""

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from families import random_model, shape
from folders import BYTES

from pretrain.errors import ConfigError
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import Example, MinimalPair, read_examples
from pretrain.evaluation.scorer import Scorer
from pretrain.evaluation.tasks import score_examples
from pretrain.language_model import LanguageModel
from pretrain.objectives.fine_tuning_config import Pooling

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm-eval is not installed: pip install -e '.[lm-eval]'", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pretrain.evaluation.lm_eval import LMEvalAdapter, rolling_windows

pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's are not ours to mend


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def tiny() -> LMEvalAdapter:
    return LMEvalAdapter(LanguageModel(random_model(shape("llama"), BYTES.vocab_size, causal=True), BYTES))


def test_requests_are_answered_with_our_scores(tiny: LMEvalAdapter) -> None:
    llm = tiny.language_model
    pairs = [("The quick", " fox"), ("", "abc")]
    found = tiny.loglikelihood(requests(*pairs), disable_tqdm=True)
    ours = Scorer(llm.model, BYTES).continuations(pairs)
    assert found == [(score.log_likelihood, score.greedy) for score in ours]
    (rolling,) = tiny.loglikelihood_rolling(requests(("x" * 20,)))
    assert rolling == pytest.approx(llm.score("x" * 20).log_likelihood, rel=1e-5)
    assert tiny.tokenizer_name == BYTES.fingerprint


def test_a_diffusion_model_answers_with_bounds_and_filled_masks() -> None:
    llm = LanguageModel(random_model(shape("bert"), BYTES.vocab_size, causal=False), BYTES, denoises=True)
    adapter = LMEvalAdapter(llm)
    pairs = [("The quick", " fox"), ("The quick", " dog"), ("", "abc")]
    ours = Scorer(llm.model, BYTES, bound=llm.bound()).continuations(pairs, [2, 1], needs_greedy=True)
    found = adapter.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert found == [(score.log_likelihood, score.greedy) for score in ours]
    (rolling,) = adapter.loglikelihood_rolling(requests(("x" * 70,)), disable_tqdm=True)
    assert rolling < 0
    asked = requests(("ab", {"max_gen_toks": 6}), ("abc", {"max_gen_toks": 6, "until": ["\n"]}))
    assert adapter.generate_until(asked, disable_tqdm=True) == adapter.generate_until(asked, disable_tqdm=True)
    assert adapter.generate_until(requests(("a [MASK]?", {"max_gen_toks": 2})), disable_tqdm=True)  # text, not a mask


def test_the_bound_of_a_document_does_not_depend_on_other_documents() -> None:
    """BLiMP's requests have all the same context, the empty one; two sentences of a pair share masks."""
    llm = LanguageModel(random_model(shape("bert"), BYTES.vocab_size, causal=False), BYTES, denoises=True)
    adapter, pairs = LMEvalAdapter(llm), [("", text) for text in ("a cat", "a cats", "the dog", "the dogs")]
    asked = [SimpleNamespace(args=pair, doc_id=n // 2, task_name="blimp") for n, pair in enumerate(pairs)]
    together = adapter.loglikelihood(asked, disable_tqdm=True)
    assert together == [
        found for start in (0, 2) for found in adapter.loglikelihood(asked[start : start + 2], disable_tqdm=True)
    ]
    ours = Scorer(llm.model, BYTES, bound=llm.bound()).continuations(pairs, [2, 2])
    assert [value for value, _ in together] == [score.log_likelihood for score in ours]


def test_the_windows_of_a_long_text_are_full_and_predict_each_token_once() -> None:
    """The example in the documentation of lm-eval's interface: ten tokens after a first one, four read at a time."""
    found = rolling_windows(np.arange(11), 4)
    assert [(each.tokens[:-1].tolist(), each.tokens[each.first :].tolist()) for each in found] == [
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([4, 5, 6, 7], [5, 6, 7, 8]),
        ([6, 7, 8, 9], [9, 10]),
    ]
    assert [len(each.tokens) for each in rolling_windows(np.arange(3), 4)] == [3]
    assert rolling_windows(np.arange(1), 4) == []


def test_texts_are_written_until_a_string(tiny: LMEvalAdapter) -> None:
    llm = tiny.language_model
    free = llm.complete(["ab", "abcd"], temperature=0, max_new_tokens=8)
    stop = next(character for character in free[0].text if character != "\ufffd")
    asked = [("ab", {"until": [stop], "max_gen_toks": 8}), ("abcd", {"until": stop}), ("x" * 99, {"max_gen_toks": 99})]
    found = tiny.generate_until(requests(*asked))
    assert found[0] == free[0].text.partition(stop)[0]
    assert stop not in found[1]
    room = llm.complete([[*b"x" * 16]], temperature=0, max_new_tokens=16)
    assert found[2] == room[0].text
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 3, "max_gen_toks": 4}
    assert len(tiny.generate_until(requests(("ab", sampled)))) == 1


def test_a_masked_model_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="lm-eval needs a causal or diffusion model, and this one was trained to fill masks"
    ):
        LMEvalAdapter(LanguageModel(random_model(shape("bert"), BYTES.vocab_size, causal=False), BYTES))


def test_a_causal_model_that_embeds_texts_is_refused() -> None:
    """Its head predicts tokens by weights that were not trained with it."""
    model = random_model(shape("llama"), BYTES.vocab_size, causal=True)
    with pytest.raises(ConfigError, match="this model embeds texts and has no head that predicts tokens"):
        LMEvalAdapter(LanguageModel(model, BYTES, pooling=Pooling.last))


def own_settings(task: str) -> dict[str, Any]:
    """Return the settings of one of lm-eval's own tasks, without where its data would be downloaded from."""
    import lm_eval.tasks
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `!function module.name` as a name: BLiMP and LAMBADA use none."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    folder = Path(str(lm_eval.tasks.__file__)).parent / {"blimp": "blimp", "lambada_openai": "lambada"}[task]
    name = {"blimp": "_template_yaml", "lambada_openai": "lambada_openai.yaml"}[task]
    found: dict[str, Any] = yaml.load((folder / name).read_text(encoding="utf8"), Loader)  # noqa: S506
    return {name: value for name, value in found.items() if name not in ("tag", "dataset_name")}


def by_lm_eval(adapter: LMEvalAdapter, settings: dict[str, Any], data: list[dict[str, str]], folder: Path) -> Any:
    """Return lm-eval's results of a task on these records."""
    import json

    import lm_eval

    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in data), encoding="utf8")
    split = settings.get("test_split") or settings["validation_split"]
    local = {
        "task": "local", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(path)}, "cache_dir": str(folder / "cache")},
    }  # fmt: skip
    found = lm_eval.simple_evaluate(
        adapter, tasks=[settings | local], bootstrap_iters=0, log_samples=False, verbosity="ERROR"
    )
    return found["results"]["local"]


def part(assets: Path, task: Task, path: str, count: int) -> tuple[list[Example], Any]:
    found = read_examples(task, str(assets / "eval" / path), max_examples=count)
    return list(found.examples), found


@pytest.mark.parametrize("delimiter", [" ", ""])
def test_blimp_of_lm_eval_is_ours(assets: Path, tmp_path: Path, delimiter: str) -> None:
    """lm-eval's own BLiMP puts a space before every sentence, which may cost or gain a pair; ours does not."""
    llm = LanguageModel.load(assets / "models" / "stories260K" / "hf")
    found, examples = part(assets, Task.minimal_pairs, "blimp/blimp.jsonl.xz", 201)  # three pairs of each paradigm
    pairs = [pair for pair in found if isinstance(pair, MinimalPair)]
    data = [{"sentence_good": pair.good, "sentence_bad": pair.bad} for pair in pairs]
    settings = own_settings("blimp") | ({} if delimiter else {"target_delimiter": ""})
    results = by_lm_eval(LMEvalAdapter(llm), settings, data, tmp_path)
    spaced = [replace(pair, good=delimiter + pair.good, bad=delimiter + pair.bad) for pair in pairs]
    ours = score_examples(Scorer(llm.model, llm.tokenizer, llm.starts_with_bos), replace(examples, examples=spaced))
    assert ours["ties"] == 0
    assert results["acc,none"] == pytest.approx(ours["accuracy"], abs=1e-9)


def test_lambada_of_lm_eval_is_ours(assets: Path, tmp_path: Path) -> None:
    llm = LanguageModel.load(assets / "models" / "stories260K" / "hf")
    passages, examples = part(assets, Task.cloze, "lambada/lambada_openai.jsonl", 40)
    data = [{"text": each.context + each.continuation} for each in passages if not isinstance(each, MinimalPair)]
    results = by_lm_eval(LMEvalAdapter(llm), own_settings("lambada_openai"), data, tmp_path)
    ours = score_examples(Scorer(llm.model, llm.tokenizer, llm.starts_with_bos), examples)
    assert results["acc,none"] == pytest.approx(ours["accuracy"], abs=1e-9)
    assert results["perplexity,none"] == pytest.approx(ours["perplexity"], rel=1e-4)
