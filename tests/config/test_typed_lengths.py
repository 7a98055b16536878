"""A typed run length or warm-up overrides presets; otherwise the rule decides."""

import pytest

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError

OWN = ["data.path=x"]
STREAM = [*OWN, "data=text_files", "data.mode=stream"]


def composed(*words: str) -> RunConfig:
    found: RunConfig = compose("train", list(words))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], 800),  # the built-in corpus keeps the recipe's length
        (["model=bert_nano"], 850),
        (OWN, None),
        ([*OWN, "data=text_files", "tokenizer=bytes", "model=llama_nano", "trainer.max_time=5", "trainer=cpu"], None),
        ([*OWN, "data=hugging_face"], None),
        ([*OWN, "trainer.max_steps=9"], 9),
        ([*OWN, "trainer.max_tokens=99999"], -1),
        ([*OWN, "trainer=debug"], 10),
        ([*OWN, "experiment=shakespeare"], 1250),
        ([*OWN, "recipe=gpt_small"], 4800),
        (STREAM, 800),  # its length is unknown
        ([*OWN, "data=labeled", "objective=classify"], 800),
    ],
)
def test_the_rule_decides_only_where_nothing_else_gives_the_length(words: list[str], steps: int | None) -> None:
    assert composed(*words).trainer.max_steps == steps


@pytest.mark.slow
def test_typed_epochs_outlast_the_steps_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    found = composed(*OWN, "trainer.max_epochs=3").trainer
    assert (found.max_steps, found.max_epochs) == (-1, 3.0)
    assert "trainer.max_steps=800 was not typed, and gives way to trainer.max_epochs" in capsys.readouterr().out
    by_tokens = composed("trainer.max_tokens=5000000").trainer
    assert (by_tokens.max_steps, by_tokens.max_tokens) == (-1, 5_000_000)
    assert "trainer.max_steps=800 was not typed, and gives way to trainer.max_tokens" in capsys.readouterr().out
    both = composed("trainer.max_epochs=3", "trainer.max_steps=5").trainer
    assert (both.max_steps, both.max_epochs) == (5, 3.0)  # the first ends the run


@pytest.mark.parametrize("other", ["warmup_steps=30", "warmup_tokens=4096"])
def test_a_warmup_fraction_is_typed_alone(other: str) -> None:
    with pytest.raises(ConfigError, match=rf"{other} and schedule\.warmup_fraction=0\.1 give one .* Give only one"):
        composed("schedule.warmup_fraction=0.1", f"schedule.{other}")
