"""int8 weights: the same model up to rounding, for inference only."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import CAUSAL, random_model, shape
from folders import BYTES, write_ours
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.inference import int8
from pretrain.inference.config import InferenceDtype
from pretrain.inference.dtype import count_parameters, prepare_for_inference
from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.int8 import BlockedMatmul, Int8Matrix, IntegerMatmul, has_integer_matmul
from pretrain.inference.sampling import Sampling
from pretrain.interop.families import GPT2_FAMILY
from pretrain.kernels.softcap import capped
from pretrain.language_model import LanguageModel
from pretrain.models.interface import features_of
from pretrain.models.transformer import Transformer

VOCAB = 50
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [30], [21, 22, 23, 24]]

FLOATS = "in float32"


@pytest.fixture(autouse=True, params=["in integers", FLOATS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kind of int8 matmul: that of a processor with VNNI instructions, or that of any other."""
    if request.param == FLOATS:
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    elif not has_integer_matmul():
        pytest.skip("this processor has no VNNI instructions")
    return str(request.param)


def rounded(weight: Tensor) -> Tensor:
    """Return a matrix (N, K) rounded to 8 bits."""
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round() * scales


def completed(model: Transformer, prompts: list[list[int]], use_cache: bool = True) -> list[list[int]]:
    """Return the 15 tokens of each prompt's greedy completion."""
    nothing = torch.zeros(VOCAB, dtype=torch.bool)
    steps = generate_tokens(model, prompts, Decoding(15, Sampling(temperature=0), frozenset(), nothing, use_cache))
    return [[token.token for token in column if token] for column in zip(*steps, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny GPT-2."""
    return write_ours(tmp_path / "model", GPT2_FAMILY, random_model(shape("gpt"), BYTES.vocab_size, causal=True))


@pytest.mark.parametrize(("n", "k"), [(7, 5), (64, 32), (33, 130), (300, 768)])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 4)])
def test_a_matmul_loses_only_the_rounding_of_the_weights(n: int, k: int, rows: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(n, k, generator=draw), torch.randn(n, generator=draw)
    x = torch.randn(*rows, k, generator=draw)
    x[0, ..., 0] = 40.0  # one channel far above the others, as trained models have
    matrix = Int8Matrix(weight)
    for found, expected in (
        (F.linear(x, matrix), F.linear(x, rounded(weight))),
        (F.linear(x, matrix, bias), F.linear(x, rounded(weight), bias)),
    ):
        assert found.shape == expected.shape
        assert float((found - expected).abs().max() / expected.abs().max()) < 3e-4


def test_positions_are_independent_and_zeros_stay_zeros(way: str) -> None:
    draw = torch.Generator().manual_seed(0)
    matrix, x = Int8Matrix(torch.randn(40, 64, generator=draw)), torch.randn(6, 64, generator=draw)
    x[1] *= 1000
    x[2] = 0
    together = F.linear(x, matrix)
    alone = torch.cat([F.linear(x[row : row + 1], matrix) for row in range(len(x))])
    if way == FLOATS:  # float32 adds up in another order for another number of rows
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)
    else:
        assert torch.equal(together, alone)
    assert not together[2].any()
    assert not F.linear(x, Int8Matrix(torch.zeros(3, 64))).any()


@pytest.mark.parametrize("family", CAUSAL)
def test_the_logits_are_those_of_the_rounded_weights(family: str) -> None:
    """Every matrix is rounded, the vocabulary's too; the embedding, the norms and the biases are not."""
    plain, exact = (random_model(shape(family), VOCAB, causal=True) for _ in range(2))
    model = prepare_for_inference(exact, "cpu", "int8")
    embedding = plain.embeddings.tokens.weight.detach().clone()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.copy_(rounded(parameter))
        hidden = features_of(plain.head, plain(torch.tensor(PROMPTS[:1])))
        head = rounded(embedding) if plain.config.tie_embeddings else plain.head.weight
        expected = capped(plain.head.softcap, F.linear(hidden, head))
        found = model.head(model(torch.tensor(PROMPTS[:1])))
    assert torch.equal(model.embeddings.tokens.weight, embedding)
    assert float((found - expected).abs().max() / expected.abs().max()) < 5e-3
    kept = ("norm", "_scale", "value_embedding")
    assert len({n for n, _ in model.named_parameters() if "weight" in n and not any(part in n for part in kept)}) <= 2


@pytest.mark.parametrize("family", CAUSAL)
def test_neither_cache_nor_neighbours_change_a_token(family: str) -> None:
    model = prepare_for_inference(random_model(shape(family), VOCAB, causal=True), "cpu", InferenceDtype.int8)
    together = completed(model, PROMPTS)
    assert together == completed(model, PROMPTS, use_cache=False)
    assert together == [completed(model, [prompt])[0] for prompt in PROMPTS]
    assert len({token for column in together for token in column}) > 5  # not one token over and over


@pytest.mark.parametrize("family", ["bert", "modern_bert"])
def test_a_masked_model_predicts_much_the_same(family: str) -> None:
    plain, other = (random_model(shape(family), VOCAB, causal=False) for _ in range(2))
    model, tokens = prepare_for_inference(other, "cpu", InferenceDtype.int8), torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        expected = plain.head(plain(tokens))
        found = model.head(model(tokens))
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.slow
def test_a_trained_model_loses_less_than_a_hundredth_of_its_perplexity(assets: Path) -> None:
    folder = assets / "models" / "stories260K" / "hf"
    text = (assets / "corpora" / "tinystories_sample" / "tiny.utf8").read_text(encoding="utf8")
    stories = [part.strip() for part in text.split("<|endoftext|>")[:8]]
    plain, int8 = (LanguageModel.load(folder, dtype=dtype) for dtype in ("fp32", "int8"))
    for exact, found in zip(plain.score(stories), int8.score(stories), strict=True):
        assert found.loss != exact.loss
    exact, found = (sum(s.log_likelihood for s in model.score(stories)) for model in (plain, int8))
    assert abs(found / exact - 1) < 0.005
    assert int8.generate("Once upon a time", temperature=0, max_new_tokens=20).startswith("Once upon a time, there was")


def test_an_int8_model_cannot_be_trained_or_saved(folder: Path) -> None:
    plain, int8 = LanguageModel.load(folder), LanguageModel.load(folder, dtype="int8")
    assert repr(int8) == repr(plain)
    assert count_parameters(int8.model) == sum(parameter.numel() for parameter in plain.model.parameters())
    with pytest.raises(ConfigError, match=r"dtype=int8 is for inference only\. To train .* dtype=fp32"):
        int8.model.train()
    with pytest.raises(ConfigError, match=r"dtype=int8 is for inference only\. To save .* dtype=fp32"):
        int8.model.state_dict()
    with pytest.raises(TypeError, match=r"works with F\.linear only"):
        torch.add(torch.ones(1), int8.model.head.weight)


def test_an_unknown_or_unusable_dtype_is_refused(folder: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            LanguageModel.load(folder, **options)

    refused(r"dtype=int4 is not a number format of weights\. Choose one of: fp32, bf16, int8\.", dtype="int4")
    refused(r"dtype=int8 works on CPUs only, and device=cuda is not one\. Try .*", dtype="int8", device="cuda")


def test_the_processor_decides_the_matmul_and_the_slow_one_warns(
    way: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = LanguageModel.load(folder, dtype="int8").model
    matmuls = {type(module.matmul) for module in model.modules() if isinstance(module, Int8Matrix)}
    assert matmuls == {BlockedMatmul if way == FLOATS else IntegerMatmul}
    named = [r.getMessage() for r in caplog.records if "int8" in r.getMessage()]
    assert len(named) == (way == FLOATS)
    assert all("this processor has no VNNI instructions" in text for text in named)


def test_large_matrices_are_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(-127, 128, (100, 8), generator=draw).to(torch.int8)
    scales, x = torch.ones(100), torch.rand(3, 8, generator=draw)
    whole, _ = BlockedMatmul(bytes_, scales)(x)
    for numbers in (1, 8 * 30, 8 * 99, 8 * 100):
        monkeypatch.setattr(int8, "BLOCK", numbers)
        torch.testing.assert_close(BlockedMatmul(bytes_, scales)(x)[0], whole, rtol=1e-5, atol=1e-3)


IN_A_PROCESS = """
import torch, torch.nn.functional as F
from pretrain.inference.int8 import Int8Matrix
weight, x = torch.full((2, 64), 0.5), torch.full((1, 64), 3.0)
print(float(F.linear(x, Int8Matrix(weight))[0, 0]))
"""


@pytest.mark.slow
def test_onednn_without_vnni_does_not_saturate_sums(way: str) -> None:
    """ONEDNN_MAX_CPU_ISA=AVX2 makes a processor with VNNI compute as one without: pairs are added in 16 bits."""
    if way == FLOATS:
        pytest.skip("a process of its own finds its way by itself")
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS], env=environment, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(96.0, rel=1e-4), done.stderr
