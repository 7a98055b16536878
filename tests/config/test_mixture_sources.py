"""Settings of a mixture: typed like all others, saved as data, and checked at once."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import preset_folders, registry
from pretrain.config.compose import compose, register_schemas
from pretrain.config.registry import register
from pretrain.config.run import RunConfig
from pretrain.config.scripts import PrepareConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.data.config import HuggingFaceConfig, MixtureConfig, Mode, Packing, PythonDocsConfig, TextFilesConfig
from pretrain.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
DOCS = "docs: {kind: python_docs, weight: 2}"


def mixture(*words: str) -> MixtureConfig:
    """Return the data settings of a mixture with these words typed; they must survive being saved."""
    run: RunConfig = compose("train", ["data=mixture", *words])
    assert isinstance(run.data, MixtureConfig)
    assert from_dict(to_dict(run)) == run
    return run.data


@pytest.mark.slow
def test_sources_are_typed_and_have_the_mixtures_common_settings() -> None:
    found = mixture(
        "data.sources={novels: {kind: text_files, path: a-b/c.txt, separator: '|', weight: 0.6}, "
        "web: {kind: hugging_face, path: x, max_documents: 5, weight: 3, validation_fraction: 0.5}}",
        "data.packing=concat", "data.validation_fraction=0.1",
    )  # fmt: skip
    assert found.parts() == {
        "novels": TextFilesConfig(
            path="a-b/c.txt", separator="|", packing=Packing.concat, validation_fraction=0.1
        ),
        "web": HuggingFaceConfig(path="x", max_documents=5, packing=Packing.concat, validation_fraction=0.5),
    }  # fmt: skip
    assert found.weights({"novels": 10, "web": 20}) == {"novels": Fraction(3, 5), "web": Fraction(3)}


def test_a_mixture_is_not_streamed() -> None:
    message = r"data\.mode=stream reads one corpus, and data\.kind=mixture has several, .* Try data\.mode=prepare\."
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(mode=Mode.stream)


@pytest.mark.slow
def test_epochs_weigh_by_rows() -> None:
    found = mixture("data.sources={a: {kind: python_docs, epochs: 0.1}, b: {kind: python_docs, epochs: 3}}")
    assert found.weights({"a": 10, "b": 20}) == {"a": Fraction(1), "b": Fraction(60)}


@pytest.mark.slow
def test_one_source_may_be_changed_or_added_by_a_word_of_its_own() -> None:
    words = [f"data.sources={{a: {{kind: python_docs, weight: 1}}, {DOCS}}}", "data.sources.a.weight=5"]
    words += ["data.sources.c={kind: text_files, path: x, weight: 1}", "data.sources.c.path=y", "seed=4"]
    found = mixture(*words)
    assert {name: source.weight for name, source in found.sources.items()} == {"a": 5.0, "c": 1.0, "docs": 2.0}
    assert found.parts()["c"] == TextFilesConfig(path="y")


@pytest.mark.slow
def test_the_order_in_which_sources_are_written_means_nothing() -> None:
    one = mixture("data.sources={b: {kind: python_docs, weight: 1}, a: {kind: text_files, path: x, weight: 1}}")
    other = mixture("data.sources={a: {kind: text_files, path: x, weight: 1}, b: {kind: python_docs, weight: 1}}")
    assert list(one.sources) == list(other.sources) == ["a", "b"]


@pytest.mark.slow
def test_a_record_says_what_each_source_is_in_full() -> None:
    words = [f"data.sources={{novels: {{kind: text_files, path: x, weight: 1}}, {DOCS}}}"]
    record = to_dict(compose("train", ["data=mixture", *words]))["data"]
    assert record["sources"] == {
        "docs": {"kind": "python_docs", "weight": 2.0},
        "novels": {
            "kind": "text_files", "path": "x", "validation_path": None, "text_column": "text", "separator": None,
            "format": "auto", "weight": 1.0,
        },
    }  # fmt: skip
    register_schemas("prepare", PrepareConfig)
    assert to_dict(compose("prepare", ["data=mixture", *words]))["data"] == record


@pytest.mark.slow
def test_an_experiment_file_may_hold_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the one that the comments of configs/data/mixture.yaml show."""
    folder = shutil.copytree(preset_folders.CONFIG_FOLDER, tmp_path / "configs")
    monkeypatch.setattr(preset_folders, "CONFIG_FOLDER", folder)
    comments = (folder / "data" / "mixture.yaml").read_text(encoding="utf8").splitlines()
    start = comments.index("#   defaults:")
    shown = [line.removeprefix("#   ") for line in comments[start:] if line.startswith("#   ")]
    (folder / "experiment" / "mine.yaml").write_text("\n".join(["# @package _global_", *shown, ""]))
    found: RunConfig = compose("train", ["experiment=mine", "data.sources.docs.weight=0.5"])
    assert found.data.parts() == {
        "docs": PythonDocsConfig(validation_fraction=0.1), "novels": TextFilesConfig(path="novels.jsonl.xz")
    }  # fmt: skip
    assert found.data.weights({}) == {"docs": Fraction(1, 2), "novels": Fraction(3, 5)}


@pytest.mark.slow
def test_a_registered_kind_may_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})

    @dataclass
    class MinutesConfig(TextFilesConfig):
        kind: str = "minutes"
        year: int = 2000

    register("data", MinutesConfig)
    found = mixture(f"data.sources={{a: {{kind: minutes, path: x, year: 1999, weight: 1}}, {DOCS}}}")
    assert found.parts()["a"] == MinutesConfig(path="x", year=1999)


REFUSED = [
    ("{}", "data.sources names no source, and a mixture needs two or more. Try 'data.sources={"),
    ("{a: {kind: python_docs, weight: 1}}", "data.sources names a alone, and a mixture needs two or more."),
    ("3", "data.sources=3 does not fit: data.sources has entries by name. Try 'data.sources.<name>=...'"),
    ("null", "data.sources=null does not fit: data.sources has entries by name. Try 'data.sources.<name>=...'"),
    ("{a: 3, DOCS}", "data.sources.a=3 is not a mapping of settings. Try 'data.sources.a={kind: text_files, path: "),
    ("{a b: {kind: python_docs, weight: 1}, DOCS}", "data.sources.a b is not a name for a source: letters"),
    ("{a: {weight: 1}, DOCS}", "data.sources.a.kind has no value, and needs one: chat, curated, hugging_face, p"),
    ("{a: {kind: text_file}, DOCS}", "data.sources.a.kind=text_file is unknown. Did you mean text_files?"),
    (
        "{a: {kind: [1]}, DOCS}",
        "data.sources.a.kind=[1] is unknown. There are: chat, curated, hugging_face, pairs, prepared, python_docs, tex",
    ),
    (
        "{a: {kind: labeled, path: x, weight: 1}, DOCS}",
        "data.sources.a.kind=labeled has texts with labels, and a mixture reads text, pairs and conversations. Try a r",
    ),
    ("{a: {kind: related, path: x, weight: 1}, DOCS}", "data.sources.a.kind=related has texts that belong together"),
    ("{a: {kind: mixture}, DOCS}", "data.sources.a.kind=mixture would put a mixture into the mixture. Name its sourc"),
    ("{a: {kind: text_files, weight: 1}, DOCS}", "data.sources.a.path has no value, and needs one. Give it as data.s"),
    ("{a: {kind: text_files, path: ???}, DOCS}", "data.sources.a.path has no value, and needs one."),
    ("{a: {kind: text_files, pth: x}, DOCS}", "data.sources.a.pth is not a setting. Did you mean data.sources.a.path?"),
    (
        "{a: {kind: python_docs, packing: concat}, DOCS}",
        "data.sources.a.packing=concat cannot differ from source to source. Set it for all: data.packing=concat.",
    ),
    ("{a: {kind: text_files, path: [1]}, DOCS}", "data.sources.a.path=[1] does not fit: Cannot convert 'list' to str"),
    ("{a: {kind: text_files, path: null}, DOCS}", "data.sources.a.path=None does not fit: field 'data.sources.a.path'"),
    (
        "{a: {kind: hugging_face, path: x, max_documents: many, weight: 1}, DOCS}",
        "data.sources.a.max_documents=many does not fit: Value 'many'",
    ),
    (
        "{a: {kind: hugging_face, path: x, max_documents: -1, weight: 1}, DOCS}",
        "data.sources.a.max_documents=-1 is negative. Try data.sources.a.max_documents=0, which reads all.",
    ),
    (
        "{a: {kind: python_docs, validation_fraction: 1.5, weight: 1}, DOCS}",
        "data.sources.a.validation_fraction=1.5 is not a share from 0 up to but not including 1. Try data.sources.a.va",
    ),
    (
        "{a: {kind: python_docs}, DOCS}",
        "data.sources.a.weight has no value, and a source needs a weight or epochs. Try data.sources.a.weight=1, or ",
    ),
    (
        "{a: {kind: python_docs, weight: 1, epochs: 2}, DOCS}",
        "data.sources.a.weight=1.0 and data.sources.a.epochs=2.0 say the same in two ways. Give only one, such as data",
    ),
    (
        "{a: {kind: python_docs, epochs: 2}, DOCS}",
        "data.sources.a.epochs=2.0 does not go with data.sources.docs.weight=2.0: all sources have weights, or all hav",
    ),
    (
        "{a: {kind: python_docs, weight: -1}, DOCS}",
        "data.sources.a.weight=-1.0 is not a number above 0. Try data.sources.a.weight=1.",
    ),
    ("{a: {kind: python_docs, weight: 0}, DOCS}", "data.sources.a.weight=0.0 is not a number above 0."),
    ("{a: {kind: python_docs, weight: nan}, DOCS}", "data.sources.a.weight=nan is not a number above 0."),
    ("{a: {kind: python_docs, epochs: inf}, DOCS}", "data.sources.a.epochs=inf is not a number above 0."),
    ("{a: {kind: python_docs, weight: true}, DOCS}", "data.sources.a.weight=True does not fit: Value 'True'"),
    ("{a: {kind: python_docs, weight: much}, DOCS}", "data.sources.a.weight=much does not fit: Value 'much'"),
    (
        "{a: {kind: text_files, path: '\\${seed}', weight: 1}, DOCS}",
        "data.sources.a.path=${seed} refers to something else. Write the value itself.",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("written", "message"), REFUSED)
def test_what_does_not_fit_is_named_in_one_sentence(written: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mixture(f"data.sources={written.replace('DOCS', DOCS)}")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_mistake_elsewhere_is_not_blamed_on_the_sources() -> None:
    for words, message in (
        (["seed=1.5"], "seed=1.5 does not fit"),
        (["data.source.docs.weight=1"], "data.source is not a setting. Did you mean data.sources?"),
        (["data.sources.docs.wieght=1"], "data.sources.docs.wieght is not a setting. Did you mean data.sources.docs.w"),
    ):
        with pytest.raises(ConfigError) as caught:
            mixture(f"data.sources={{a: {{kind: python_docs, weight: 1}}, {DOCS}}}", "data.sources.a.weight=3", *words)
        assert str(caught.value).startswith(message)
    for word in ("data.sources.a.weight=3", "data.sources={}"):
        with pytest.raises(ConfigError, match=r"data\.sources is a setting of data=mixture only"):
            compose("train", [word, "seed=1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "${oc.env:HOME}"}, r"the saved settings hold data\.sources\.novels\.path=\$\{oc\.env:HOME\}"),
        ({"kind": "os.system"}, r"data\.sources\.novels\.kind=os\.system is unknown"),
        ({"_target_": "os.system"}, r"data\.sources\.novels\._target_ is not a setting"),
        ({"weight": -1}, r"data\.sources\.novels\.weight=-1\.0 is not a number above 0"),
    ],
)
def test_a_saved_record_is_data(change: dict[str, Any], message: str) -> None:
    words = ["data=mixture", f"data.sources={{novels: {{kind: text_files, path: x, weight: 1}}, {DOCS}}}"]
    record = to_dict(compose("train", words))
    record["data"]["sources"]["novels"] |= change
    with pytest.raises(ConfigError, match=message):
        from_dict(record)


@pytest.mark.slow
def test_a_mistake_in_a_source_is_told_before_torch_is_loaded() -> None:
    words = ["data=mixture", f"data.sources={{a: {{kind: python_docs, wieght: 1}}, {DOCS}}}"]
    code = f"import sys, runpy; sys.argv[1:] = {words!r}; runpy.run_path('src/train.py', run_name='__main__')"
    watched = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    found = subprocess.run(
        [sys.executable, "-c", watched], capture_output=True, text=True, env=os.environ, cwd=REPOSITORY, check=False
    )
    assert found.returncode == 2
    assert found.stderr == (
        "ConfigError: data.sources.a.wieght is not a setting. Did you mean data.sources.a.weight?\nFalse\n"
    )
