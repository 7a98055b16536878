"""LoRA: only adapters train, a checkpoint is complete, merged equals unmerged, resume is exact."""

from pathlib import Path

import pytest
import torch
from same_state import assert_same_state
from test_fine_tuning import pairs, tune
from torch.testing import assert_close

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose, register_schemas
from pretrain.config.scripts import ExportConfig
from pretrain.errors import ConfigError
from pretrain.interop.export import export_adapters, export_model
from pretrain.interop.load import build_without_weights, open_model
from pretrain.language_model import LanguageModel
from pretrain.models.interface import hidden_states
from pretrain.models.lora import add_adapters, is_adapter
from pretrain.parallel.mesh import load_parameters
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import forecast, target_of
from pretrain.planning.printing import describe
from pretrain.training.run_parts import flops_per_token
from pretrain.training.train import run

LORA = ["lora.rank=4", "lora.alpha=8", "optimizer.learning_rate=0.02", "model.dropout=0.0"]


@pytest.fixture
def base(tiny) -> Path:
    return Path(run(tiny.plan("model=gpt_nano", "model.context_length=64", "model.dropout=0.0")).folder)


def lora_words(tiny, base: Path, folder: Path, *words: str) -> list[str]:
    return tune(tiny, "lora", base, f"data.path={pairs(folder)}", *LORA, *words)


def logits(model, rows) -> torch.Tensor:
    with torch.no_grad():
        return model.head(hidden_states(model.eval(), rows))


def unmerged(path: Path):
    """Return the model of a LoRA checkpoint with its adapters beside the matrices."""
    folder = open_model(path)
    model = build_without_weights(folder.shape, folder.objective, folder.tokenizer)
    add_adapters(model, folder.run.lora)
    model.to_empty(device="cpu")
    model.tie()
    load_parameters(model, lambda name, size: folder.saved.read(name))
    return model


@pytest.mark.slow
def test_only_adapters_train_and_the_checkpoint_is_complete(tiny, base, tmp_path, capsys):
    words = lora_words(tiny, base, tmp_path, "trainer.max_steps=60", "checkpoint.every_n_steps=60")
    with pytest.raises(
        ConfigError, match=r"'\*\.qeury', which matches no matrix.*It has blocks\.0\.attention\.query\.weight"
    ):
        run(tiny.plan(*words, "lora.targets=[*.qeury]"))
    report = run(tiny.plan(*words))
    assert "parameters are trained" in capsys.readouterr().out
    before, after = open_checkpoint(base), open_checkpoint(Path(report.folder))
    weights = after.tensors("model")
    for name, value in before.tensors("model").items():
        assert torch.equal(value, weights[name]), name
    optimizer = {name.rpartition("/")[0] for name in after.tensors("optimizer")}
    assert optimizer == {name for name in weights if is_adapter(name)}
    base.rename(base.with_name("elsewhere"))  # the checkpoint needs it no more
    llm = LanguageModel.load(report.folder)
    rows = torch.arange(64).reshape(1, -1)
    assert_close(logits(llm.model, rows), logits(unmerged(Path(report.folder)), rows), atol=1e-5, rtol=1e-5)
    assert "lora" not in str(list(dict(llm.model.named_parameters())))


@pytest.mark.slow
def test_resume_is_exact(tiny, base, tmp_path):
    words = lora_words(tiny, base, tmp_path, "trainer.max_steps=6", "checkpoint.every_n_steps=3", "lora.dropout=0.1")
    whole = Path(run(tiny.plan(*words, f"paths.run_dir={tmp_path / 'whole'}", "checkpoint.keep=0")).folder)
    half = whole / "checkpoints" / "step-00000003"
    copy = tmp_path / "copy" / "checkpoints"
    copy.mkdir(parents=True)
    half.rename(copy / half.name)
    again = [*words, "resume=auto", f"paths.run_dir={tmp_path / 'copy'}"]
    resumed = Path(run(tiny.plan(*again)).folder)
    assert_same_state(whole, resumed)
    with pytest.raises(ConfigError, match=r"lora\.rank: 4 in the run, 2 now"):
        tiny.plan(*again, "lora.rank=2")
    # what was learned goes on in a run without adapters, and in one with new ones
    merged = run(tiny.plan(*words, f"init_from={resumed}", "lora.rank=0", "trainer.max_steps=1"))
    assert open_checkpoint(Path(merged.folder)).tensors("model").keys() == open_checkpoint(base).tensors("model").keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora.targets=[]"], r"lora\.targets=\[\] gives no matrix an adapter\. Try 'lora\.targets=\[blocks\.\*\]'"),
        (["lora.rank=-1"], r"lora\.rank=-1 is negative\. Try lora\.rank=8, or 0 for none"),
        (["init_from=null"], r"lora\.rank=4 trains adapters of a trained base, and init_from names none"),
        (["lora.init_from=x", "lora.rank=0"], r"lora\.init_from=x starts from adapters, and lora\.rank=0 trains none"),
        (
            ["trainer.strategy=fsdp", "trainer.devices=2", "parallel.tensor_parallel=2"],
            r"parallel\.tensor_parallel=2 splits the matrices, and lora\.rank=4",
        ),
    ],
)
def test_wrong_settings_are_refused(tiny, words, message):
    with pytest.raises(ConfigError, match=message):
        tiny.config("model=gpt_nano", "init_from=base", "lora.rank=4", *words)


@pytest.mark.long
def test_a_hugging_face_base_is_exported_merged_and_as_adapters(tiny, assets, tmp_path, capsys):
    """stories260K: the merged export has the run's logits, and the PEFT folder starts a run that has the same loss."""
    base = assets / "models" / "stories260K" / "hf"
    words = lora_words(tiny, base, tmp_path, "trainer.max_steps=3", "lora.targets=[*.query,*.down]")
    path = run(tiny.plan(*words)).folder
    rows = torch.arange(100).reshape(2, -1)
    expected = logits(unmerged(Path(path)), rows)
    export_model(ExportConfig(checkpoint=path, output=str(tmp_path / "merged")), path)
    assert_close(logits(open_model(tmp_path / "merged").load(), rows), expected, atol=1e-5, rtol=1e-5)
    said = export_adapters(ExportConfig(checkpoint=path, output=str(tmp_path / "adapters"), adapters=True), path)
    assert "PeftModel.from_pretrained(<the base>" in said
    again = run(tiny.plan(*words, f"lora.init_from={tmp_path / 'adapters'}", "optimizer.learning_rate=1e-12"))
    assert_close(logits(unmerged(Path(again.folder)), rows), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"adapters=true writes the adapters of a LoRA run, and .* has none"):
        export_adapters(ExportConfig(output=str(tmp_path / "none"), adapters=True), base)


@pytest.mark.slow
def test_the_plan_knows_what_is_frozen():
    words = [
        "model=gpt_nano",
        "init_from=base",
        "vocab_size=256",
        "device=cpu",
        "optimizer=adamw",
        "trainer.precision=fp32",
    ]
    register_schemas("plan", PlanConfig)
    full, lora = (compose("plan", [*words, f"lora.rank={rank}"]) for rank in (0, 2))
    target = target_of(full)
    planned = [forecast(config, target, simulate=True) for config in (full, lora)]
    assert all(each.simulated is not None for each in planned)
    for counted in (planned[1].simulated, planned[1].estimate):
        trained = 4 * (planned[1].work.parameters - planned[1].work.frozen_parameters)
        assert counted.gradients == trained
        assert counted.optimizer == pytest.approx(2 * trained, rel=0.01)  # and a step count each
    assert planned[1].peak < 0.9 * planned[0].peak
    text = describe(planned[1], lora)
    assert " of them trained" in text
    assert "4 per frozen weight in a matmul, 6 per trained one" in text
    assert "Compute-optimal" in describe(planned[0], full)
    assert "Compute-optimal" not in text
    with torch.device("meta"):
        model = lora.model.build(256, causal=True)
        add_adapters(model, lora.lora)
    assert flops_per_token(lora, 256, model) == planned[1].cost.flops_per_token
    assert planned[1].checkpoint_bytes < planned[0].checkpoint_bytes
