"""What the benchmarks of GPUs race, in tiny shapes on a CPU: peers take steps, and all read the same kind of tokens."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import baselines
import gpu
import zipf_tokens
from comparison import Result
from shapes import SHAPES, Shape


class Enough(Exception):  # noqa: N818  (not an error)
    """A baseline has taken the steps that it was given."""


class Turn:
    """Gives a baseline a few steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        """Count a step."""
        if self.left == 0:
            raise Enough
        self.left -= 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [("torchtitan", "llama_tiny"), *[("transformers", f"{family}_tiny") for family in ("llama", "modernbert", "bert")]],
)
def test_a_peer_trains_on_tokens_of_the_whole_vocabulary(
    name: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    learned: list[torch.nn.Module] = []
    windows, adamw = baselines.windows_of, baselines._adamw

    def noted(shape: Shape) -> Any:
        for x, y in windows(shape):
            seen.append(x)
            yield x, y

    monkeypatch.setattr(baselines, "windows_of", noted)
    monkeypatch.setattr(baselines, "_adamw", lambda model: learned.append(model) or adamw(model))
    with pytest.raises(Enough):
        baselines.CONTENDERS[name](SHAPES[shape], Turn(2), tmp_path)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in learned[0].parameters())
    assert len(torch.cat(seen).unique()) > 100
    masked, share = torch.cat(seen) == zipf_tokens.MASK, SHAPES[shape].masked_share
    deviation = (share * (1 - share) / masked.numel()) ** 0.5
    assert float(masked.float().mean()) == pytest.approx(share, abs=4 * deviation)


def test_the_page_of_a_llama_is_transformers_llama() -> None:
    """Its loss and gradients, with the same weights, chunked and whole."""
    from peer_models import transformers_model
    from plain_llama import PlainLlama

    shape = SHAPES["llama_tiny"]
    torch.manual_seed(0)
    theirs: Any = transformers_model(shape)
    page = PlainLlama(shape.vocab_size, shape.n_layers, shape.d_model, shape.n_heads, 2, shape.ff_width)
    names = {
        "tokens": "model.embed_tokens", "norm": "model.norm", "blocks": "model.layers", "query": "self_attn.q_proj",
        "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj", "gate": "mlp.gate_proj",
        "up": "mlp.up_proj", "down": "mlp.down_proj", "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    }  # fmt: skip
    state = theirs.state_dict()
    ours = {name: ".".join(names.get(part, part) for part in name.split(".")) for name in page.state_dict()}
    page.load_state_dict({name: state[other] for name, other in ours.items()})
    x, y = next(baselines.windows_of(shape))
    loss, expected = page.loss(x, y), baselines.mean_loss(theirs(x).logits, y)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    expected.backward()
    for name, parameter in page.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(ours[name]).grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_our_run_reads_the_same_documents_as_its_peers(tmp_path: Path) -> None:
    from pretrain.data.prepare import prepare

    config = baselines._config(SHAPES["gpt_tiny"], tmp_path)
    stores = prepare(config.data, config.tokenizer, tmp_path / "cache", report=lambda line: None)
    assert stores.tokenizer.vocab_size == SHAPES["gpt_tiny"].vocab_size
    train = stores.train[""]
    read = {tuple(train.document(number)[1:-1].tolist()) for number in range(train.n_documents)}  # without its ends
    written = {tuple(document.tolist()) for document in zipf_tokens.documents(512, SHAPES["gpt_tiny"].zipf)}
    assert read <= written
    assert len(read) > 0.8 * len(written)


def test_frequencies_and_lengths_are_those_of_text() -> None:
    documents = zipf_tokens.documents(50_304, 1_000_000)
    tokens, lengths = torch.cat(documents), torch.tensor([len(each) for each in documents], dtype=torch.float64)
    assert len(tokens) == 1_000_000
    assert float(lengths.mean()) == pytest.approx(zipf_tokens.MEAN_LENGTH, rel=0.1)
    assert float(lengths.median()) == pytest.approx(0.69 * zipf_tokens.MEAN_LENGTH, rel=0.15)  # of a geometric one
    counts = tokens.bincount(minlength=50_304)
    assert counts[: zipf_tokens.N_SPECIAL].sum() == 0
    assert float(counts[2] / counts[2 + 100]) == pytest.approx(103.7 / 3.7, rel=0.2)
    assert int((counts > 0).sum()) > 30_000
    assert zipf_tokens.stream(50_304, 1_000_000).bincount()[zipf_tokens.END] == len(documents)


def test_shapes_are_raced_together_as_far_as_the_memory_of_a_gpu_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    shapes = list(gpu.PEERS)
    assert gpu.together(shapes, 132) == [shapes[:3], [shapes[3]], [shapes[4]]]
    assert gpu.together(shapes, 20) == [[name] for name in shapes]
    assert gpu.together(shapes, 1000) == [shapes]
    result, started = Result("gpu", "", {}), []
    monkeypatch.setattr(gpu, "Baseline", lambda name, *rest: started.append(name) or type("", (), {"name": name})())
    gpu.start("llama_1b_gpu", 132, result)
    assert started == ["ours", "torchtitan", "transformers"]
    assert result.missing == {"litgpt, llama_1b_gpu": "the GPU's memory does not hold it beside the others"}
    monkeypatch.setattr(gpu, "find_spec", lambda name: name != "litgpt")
    assert [each.name for each in gpu.start("llama_1b_gpu", 1000, result)] == ["ours", "torchtitan", "transformers"]
    assert result.missing["litgpt, llama_1b_gpu"] == "litgpt is not installed"
