"""A run that its model does not support is refused before the first step."""

import pytest
from families import random_model, shape
from torch import nn

from pretrain.errors import ConfigError
from pretrain.training.model_support import check_supported


class Plain(nn.Module):
    def forward(self, tokens):
        return tokens


class Masked(nn.Module):
    def forward(self, tokens, documents=None):
        return tokens


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        ([], Plain(), r"data\.document_mask=true.*Try data\.document_mask=false"),
        (["data.document_mask=false", "objective=masked"], Plain(), r"objective=masked attends to whole rows"),
        (["objective=hybrid"], Masked(), r"objective=hybrid chooses the direction.*`is_causal`"),
        (["parallel.activation_checkpointing=true"], Masked(), r"activation_checkpointing=true.*has no `blocks`"),
        (
            ["trainer.half_residual_stream=true", "trainer.precision=bf16"],
            Masked(),
            r"half_residual_stream=true casts.*Try trainer\.half_residual_stream=false",
        ),
        (["data.document_mask=false"], Plain(), ""),
        ([], Masked(), ""),
    ],
)
def test_a_model_is_asked_for_what_the_run_needs(tiny, words: list[str], model: nn.Module, message: str) -> None:
    config = tiny.config("model=gpt_nano", *words)
    if not message:
        check_supported(config, model)
        return
    with pytest.raises(ConfigError, match=message):
        check_supported(config, model)


@pytest.mark.parametrize(("ids", "devices", "fits"), [(65, 16, False), (80, 16, True), (65, 2, True), (3, 2, True)])
def test_each_tensor_parallel_device_has_some_of_the_vocabulary(tiny, ids: int, devices: int, fits: bool) -> None:
    config = tiny.config("model=gpt_nano", f"parallel.tensor_parallel={devices}", "trainer=fsdp")
    model = random_model(shape("gpt"), ids, causal=True)
    if fits:
        check_supported(config, model)
        return
    with pytest.raises(ConfigError, match=r"of 65 ids the last device would get none\. Try model\.vocab_multiple=16\."):
        check_supported(config, model)
