"""Quoting once, in the shell, is enough: a text setting takes any text, and 1e9 is a whole number."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.compose import compose
from pretrain.config.declared import every_setting, kinds_with, types_of
from pretrain.config.overrides import as_hydra_reads, unquoted
from pretrain.config.run import RunConfig
from pretrain.config.sweep import combinations
from pretrain.errors import ConfigError
from pretrain.planning.config import ScaleConfig

TEXTS = [
    "my runs/é = $x 😀", "données/texte.txt", "1e3", "007", "true", "it's", 'say "hi"', "a, b", "[draft]", "{a: b}",
    "a#b", "x=1", "a'b\"c", "$HOME", "(1)", " leading", "a:b", "50%", "a&b;c|d", "日本語", "*.txt", "a\\b", "!x", "@y",
    "a^b~c", "'", "choice(a", "1_000", "-3", "nan", "a\tb",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_setting_takes_any_text(text: str) -> None:
    config: RunConfig = compose("train", ["data=text_files", f"data.path={text}", f"paths.run_dir={text}"])
    assert (config.data.path, config.paths.run_dir) == (text, text)


@pytest.mark.slow
@given(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs", "Cc"]), min_size=1))
def test_what_is_typed_is_what_is_read(text: str) -> None:
    """But for what has a meaning of its own: null, a reference, a text in quotes of Hydra's, the home folder."""
    word = as_hydra_reads(f"name={text}", RunConfig)
    assert as_hydra_reads(word, RunConfig) == word  # a job of a sweep is typed a second time
    special = "${" in text or text.lower() == "null" or (text[0] == text[-1] and text[0] in "'\"" and len(text) > 1)
    if not special and not text.startswith(("str(", "json_str(")):
        assert unquoted(word.partition("=")[2]) == text


@pytest.mark.slow
def test_words_that_were_quoted_twice_are_read_as_before() -> None:
    for word, value in [
        ('"a b, c"', "a b, c"), ("'x'", "x"), ("a b", "a b"), (r"a\,b", "a,b"), ("${name}_2", "gpt_nano_2"),
        ("", ""), (r"\n\n", r"\n\n"),
    ]:  # fmt: skip
        given = compose("train", ["data=text_files", "data.path=x", f"data.text_column={value and word}"])
        assert given.data.text_column == value
    assert compose("train", ["paths.run_dir=null"]).paths.run_dir is None
    assert as_hydra_reads("data=text_files", RunConfig) == "data=text_files"
    assert as_hydra_reads("model.n_layers=é", RunConfig) == "model.n_layers=é"  # refused by its type, not read as text
    assert as_hydra_reads("max_steps", RunConfig) == "max_steps"


@pytest.mark.slow
def test_the_home_folder_is_where_a_place_is_asked_for() -> None:
    words = ["data=text_files", "data.path=~/texts", "paths.run_dir=~", "data.text_column=~/x", "name=~x"]
    config: RunConfig = compose("train", words)
    assert config.data.path == str(Path.home() / "texts")
    assert config.paths.run_dir == str(Path.home())
    assert (config.data.text_column, config.name) == ("~/x", "~x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "number"), [("1e9", 10**9), ("1.5E3", 1500), ("2e+3", 2000), ("1_0e2", 1000), ("1e18", 10**18)]
)
def test_a_whole_number_may_have_an_exponent(typed: str, number: int) -> None:
    config: RunConfig = compose("train", [f"trainer.max_steps={typed}", "trainer.max_tokens=1e9"])
    assert (config.trainer.max_steps, config.trainer.max_tokens) == (number, 10**9)
    mixed = ["data=mixture", "data.sources.a.kind=hugging_face", "data.sources.a.path=é x", "data.sources.b.weight=1"]
    mixed += ["data.sources.a.max_documents=1e4", "data.sources.a.weight=1e0", "data.sources.b.kind=python_docs"]
    source = compose("train", mixed).data.sources["a"].text
    assert (source.max_documents, source.path) == (10_000, "é x")


@pytest.mark.slow
def test_whole_numbers_in_lists_and_mappings_may_have_exponents() -> None:
    def arrives(word: str, name: str) -> str:
        return as_hydra_reads(word, ScaleConfig).removeprefix(f"{name}=")

    assert arrives("ladder.tokens=[5e5, 2_000000]", "ladder.tokens") == "[500000,2000000]"
    assert arrives("ladder.tokens=[1.5, 2]", "ladder.tokens") == "[1.5, 2]"
    assert arrives("tags=[1e3]", "tags") == "[1e3]"
    stage = arrives("stages.a={until_tokens: 2e6, model.context_length: 1e3, optimizer.eps: 1e-8}", "stages.a")
    assert stage == "{until_tokens:2000000,model.context_length:1000,optimizer.eps:1e-08}"
    config: RunConfig = compose("train", ["stages={a: {until_steps: 1e1}, b: {batch_size: 4}}"])
    assert config.stages["a"] == {"until_steps": 10}


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["1.5", "1e-3", "15e-1", "1e", "e9", "1e9x", "1.0e0.5", "..e1", "1e400"])
def test_what_is_no_whole_number_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"seed=\S+ does not fit"):
        compose("train", [f"seed={typed}"])


@pytest.mark.slow
def test_lists_and_mappings_take_any_text_too() -> None:
    config: RunConfig = compose("train", ["sample.prompts=[it's $x, données, 1e3]"])
    assert config.sample.prompts == ["it's $x", "données", "1e3"]
    sources = "data.sources={a: {kind: text_files, path: ~/é.txt, weight: 1}, b: {kind: python_docs, weight: 0.5}}"
    found = compose("train", ["data=mixture", sources]).data.sources
    assert (found["a"].text.path, found["b"].weight) == ("~/é.txt", 0.5)
    for word in ("sample.prompts=[a", "data.sources={é: 1, ~}", "sample.prompts=[é, 2020-01-01]"):
        with pytest.raises(ConfigError, match="cannot be read"):
            compose("train", ["data=mixture", word])


def test_commas_separate_the_values_of_a_sweep() -> None:
    def swept(word: str) -> list[list[str]]:
        return list(combinations([as_hydra_reads(word, RunConfig, sweep=True)]))

    assert swept("name=a,b") == [["name=a"], ["name=b"]]
    assert swept("data.path=é,'x,y', 1e3") == [["data.path='é'"], ["data.path='x,y'"], ["data.path='1e3'"]]
    assert swept("name=choice(a,b)") == [["name=a"], ["name=b"]]
    assert swept("seed=1e1,2") == [["seed=10"], ["seed=2"]]
    assert swept("paths.logs_dir=a, b") == [["paths.logs_dir='a, b'"]]  # a sweep has one
    assert swept("data.path=README.md") == [["data.path=README.md"]]  # as before: its job's folder stays


def test_what_a_script_declares_is_found_by_name() -> None:
    assert types_of(RunConfig, "trainer.max_tokens") == {int, type(None)}
    assert types_of(RunConfig, "data.path") == {str}
    assert types_of(RunConfig, "data.sources.any.text_column") == {str}
    assert not types_of(RunConfig, "data.sources.any.nothing")
    assert not types_of(RunConfig, "model.n_layers.x")
    assert {"text_files", "hugging_face"} <= set(kinds_with("data", "text_column"))
    assert {"model.rope_scaling.factor", "optimizer.momentum", "paths.run_dir", "seed"} <= set(every_setting(RunConfig))


def test_one_command_starts_a_run_on_own_text_and_would_resume_it(tmp_path: Path) -> None:
    words = [f"data.path={tmp_path}", "resume=auto", f"paths.logs_dir={tmp_path / 'logs'}", "model=llama_nano"]
    config: RunConfig = compose("train", words)
    assert (config.data.kind, config.resume) == ("text_files", "auto")


@pytest.mark.slow
def test_an_experiment_on_the_built_in_text_takes_ones_own_and_a_mixture_does_not() -> None:
    config: RunConfig = compose("train", ["experiment=ettin_17m_nano", "data.path=x"])
    assert config.data.kind == "text_files"
    with pytest.raises(ConfigError, match=r"data\.path is a setting of .*Choose that as well"):
        compose("train", ["experiment=continue", "init_from=x", "data.path=x"])
