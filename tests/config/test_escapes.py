r"""\n in a free-text setting is a line break, in every such setting and by one rule."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.commands.tasks import generate
from pretrain.config.setting import read_escapes, write_escapes
from pretrain.inference.config import GenerateConfig
from pretrain.language_model import LanguageModel
from pretrain.training.callbacks.sample_prompts import SamplePrompt
from pretrain.training.callbacks.samples import sample_text
from pretrain.training.config import SampleConfig


def test_escapes_are_read_once_and_other_backslashes_stand() -> None:
    assert read_escapes(r"a\nb\tc\r\0") == "a\nb\tc\r\0"
    assert read_escapes(r"\\n \\\n \x41 \d é\'" + "\\") == "\\n \\\n \\x41 \\d é\\'\\"
    assert write_escapes("a\n\\n") == r"a\n\\n"


@given(st.text(alphabet="\\ntr0\n\t\r\0ax", max_size=12))
def test_what_is_written_is_read_again(text: str) -> None:
    assert read_escapes(write_escapes(text)) == text


class Recorder:
    """A model that notes what it is asked."""

    labels: tuple[str, ...] = ()
    causal = completes = True
    denoises = False
    prompt_template = None
    tokenizer = SimpleNamespace(mask_id=None)
    regressor = None

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def classify(self, prompt: str) -> dict[str, float]:
        self.asked.append(prompt)
        return {"yes": 1.0}

    def stream(self, prompt: str, **options: Any) -> list[str]:
        self.asked += [prompt, options["stop"]]
        return ["..."]


def test_stops_have_their_escapes_read_and_a_prompt_stands_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Recorder()
    monkeypatch.setattr(LanguageModel, "load", lambda *given, **named: model)
    generate(GenerateConfig(checkpoint="x", prompt=r"ROMEO:\n\\n", stop=[r"\n\n", "."]), [])
    assert model.asked == [r"ROMEO:\n\\n", ["\n\n", "."]]
    assert capsys.readouterr().out == "ROMEO:\\n\\\\n...\n"


def test_prompts_of_samples_stand_as_they_are() -> None:
    model = Recorder()
    model.labels = ("yes",)
    prompts = [SamplePrompt(text) for text in (r"a\tb", "c")]
    sample_text(model, SampleConfig(), 0, prompts)  # type: ignore[arg-type]
    assert model.asked == [r"a\tb", "c"]
