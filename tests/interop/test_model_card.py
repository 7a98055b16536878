"""A model card says what the model was trained for, and of what its weights are an average."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import shape
from test_export import run_of

from pretrain.checkpoint.average import average
from pretrain.config.scripts import ExportConfig
from pretrain.data.config import DataConfig, PythonDocsConfig
from pretrain.data.fine_tuning_config import ChatConfig, LabeledTextConfig, PairsConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files.records import sealed
from pretrain.interop.export import export_model
from pretrain.interop.model_card import purpose_of
from pretrain.objectives.config import CausalConfig, DiffusionConfig, HybridConfig, MaskedConfig, ObjectiveConfig
from pretrain.objectives.fine_tuning_config import ClassifyConfig, ContrastiveConfig

PLAIN = " It is not tuned to follow instructions or to be safe."
TEXT = PythonDocsConfig()


@pytest.mark.parametrize(
    ("objective", "data", "sentences"),
    [
        (CausalConfig(), TEXT, "A base model: it completes text like its training data." + PLAIN),
        (MaskedConfig(), TEXT, "A base model: it fills masks in texts like its training data." + PLAIN),
        (HybridConfig(), TEXT, "It was also trained to fill masks with attention in both directions"),
        (DiffusionConfig(), TEXT, "A masked diffusion model: it fills any share of masks"),
        (CausalConfig(), ChatConfig(path="x"), "A fine-tuned model: it completes text like its training data. It was "
         "fine-tuned on conversations, in the chat template of its tokenizer. It is not tuned to be safe."),
        (CausalConfig(), PairsConfig(path="x"), "A fine-tuned model: it completes text like its training data. It was "
         'fine-tuned to respond to prompts in the template "{prompt}\\\\n{response}". It is not tuned to be safe.'),
        (ClassifyConfig(labels=["b|d", "good"]), TEXT, "A classifier of texts into the labels b\\|d, good." + PLAIN),
        (ContrastiveConfig(), TEXT, "fine-tuned to give texts that belong together vectors that are alike." + PLAIN),
    ],
)  # fmt: skip
def test_a_purpose_is_that_of_objective_and_data(objective: ObjectiveConfig, data: DataConfig, sentences: str) -> None:
    assert sentences in purpose_of(objective, data)


def test_the_card_names_the_checkpoints_that_were_averaged(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shape("llama", context_length=64), causal=True)
    average([run, run], tmp_path / "mean")
    export_model(ExportConfig(output=str(tmp_path / "out")), tmp_path / "mean")
    assert "| weights | mean of the checkpoints of steps 5, 5 |" in (tmp_path / "out" / "README.md").read_text()


def test_a_record_of_corpora_that_was_edited_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shape("llama", context_length=64), causal=True)
    path = run / "checkpoints" / "step-00000005" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["progress"]["corpora"] = {"": {"fingerprint": 5}}
    path.write_text(json.dumps(sealed(manifest)))
    message = r"step-00000005: corpora of the checkpoint has fingerprint=5, .* It was edited\. Take another checkpoint"
    with pytest.raises(CheckpointError, match=message):
        export_model(ExportConfig(output=str(tmp_path / "out")), run)
    assert not (tmp_path / "out").exists()


LABELED = LabeledTextConfig(path="x")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"objective": ClassifyConfig(labels=["a", "b"]), "data": LABELED}, {"objective": ClassifyConfig(
            labels=["b", "a"]), "data": LABELED}, r"labels differs, \W+a\W+b\W+ and \W+b\W+a\W"),
        ({"objective": CausalConfig()}, {"objective": MaskedConfig()}, "causal attention differs, true and false"),
    ],
)  # fmt: skip
def test_weights_that_mean_different_things_have_no_mean(tmp_path: Path, one: Any, other: Any, message: str) -> None:
    """Though they have the same names and shapes."""
    runs = [
        run_of(tmp_path / name, shape("llama", context_length=64), causal=True, init_from="base", **settings)
        for name, settings in (("one", one), ("other", other))
    ]
    with pytest.raises(ConfigError, match=f"are of different models: .*{message}"):
        average(runs, tmp_path / "mean")
