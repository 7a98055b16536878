"""PEFT reads our adapters and computes our logits, and we read its own. Skipped where it is not installed."""

import importlib.util
from pathlib import Path

import pytest
import torch
from families import random_model, with_adapters
from folders import quiet_transformers, write_ours
from torch.testing import assert_close

from pretrain.interop.family import Family
from pretrain.interop.peft_folder import read_adapters, write_adapters
from pretrain.models.interface import hidden_states
from pretrain.models.lora import is_adapter
from pretrain.models.lora_config import LoraConfig
from pretrain.models.transformer import Transformer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="pip install -e '.[peft]'"),
]
ROWS = torch.arange(30).reshape(2, 15)


def exported_base(folder: Path, family: Family, model: Transformer):
    """Return the model without its adapters, exported and loaded by transformers."""
    import transformers

    plain = random_model(model.config, model.vocab_size, model.causal)
    write_ours(folder, family, plain)
    return getattr(transformers, family.class_of(plain.config)).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", ["gpt", "llama", "modern_bert", "bert"])
@pytest.mark.parametrize("targets", [["blocks.*"], ["*.query", "*.value", "blocks.1.feed_forward.up"]])
def test_peft_computes_our_logits(tmp_path, name, targets):
    from peft import PeftModel

    config = LoraConfig(rank=3, alpha=5.0, targets=targets)
    model, family, saved = with_adapters(name, config, tmp_path)
    folder = tmp_path / "adapters"
    folder.mkdir()
    write_adapters(folder, saved, family, config, base=None)
    with quiet_transformers(), torch.no_grad():
        base = exported_base(tmp_path / "base", family, model)
        without = base(ROWS).logits.clone()
        theirs = PeftModel.from_pretrained(base, folder)(ROWS).logits
    ours = model.head(hidden_states(model, ROWS)).detach()
    assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert (theirs - without).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gpt", "llama", "modern_bert", "bert"])
def test_we_compute_the_logits_of_adapters_that_peft_saved(tmp_path, name):
    """With one adapter over a fused matrix, whose `a` is that of each part, and a scale of PEFT's rsLoRA."""
    from peft import LoraConfig as TheirConfig
    from peft import get_peft_model

    config = LoraConfig(rank=6, alpha=4.0)
    model, family, _ = with_adapters(name, config, tmp_path)
    modules = {"gpt": ["c_attn", "mlp.c_proj"], "modern_bert": ["Wqkv", "Wi"], "bert": ["query", "intermediate.dense"]}
    chosen = modules.get(name, ["q_proj", "down_proj"])
    with quiet_transformers():
        base = exported_base(tmp_path / "base", family, model)
        theirs = get_peft_model(base, TheirConfig(r=4, lora_alpha=6, target_modules=chosen, use_rslora=name == "llama"))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for key, parameter in theirs.named_parameters():
                if "lora_" in key:
                    parameter.normal_(std=0.3, generator=generator)
            expected = theirs.eval()(ROWS).logits
        theirs.save_pretrained(tmp_path / "peft")
    sizes = {key: parameter.shape for key, parameter in model.named_parameters()}
    load = read_adapters(tmp_path / "peft", sizes, config, family)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if is_adapter(key):
                parameter.copy_(load(key, torch.zeros_like(parameter)))
        ours = model.head(hidden_states(model, ROWS))
    assert_close(ours, expected, atol=1e-4, rtol=1e-4)
