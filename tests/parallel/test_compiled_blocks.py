"""A compiled block is one graph with the gradients of an eager one; a graph that fails runs uncompiled."""

import multiprocessing
import shutil

import pytest
import torch
from subjects import subject

from pretrain.kernels import compile as compiling
from pretrain.kernels import onednn_linear
from pretrain.kernels.compile import compile_block, compile_or_run_eager
from pretrain.models.transformer import Transformer
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.parity import Case, TrainingTask, prepare_case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor"),
]


@pytest.mark.parametrize("family", ["llama", "modern_bert"])
@pytest.mark.parametrize("few", [onednn_linear.MIN_MULTIPLICATIONS, 1000], ids=["small matmuls", "large matmuls"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_block_is_one_graph(family: str, few: int, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced forward and back as for the C++ compiler, which is not called: that takes a quarter of a minute."""
    monkeypatch.setattr(onednn_linear, "MIN_MULTIPLICATIONS", few)
    one = subject(family, dropout=0.1)
    model_with_loss = prepare_case(one, Case(1))
    for block in model_with_loss.model.blocks:
        block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model_with_loss(one.batch(0))[0].backward()
    torch.compiler.reset()
    assert all(parameter.grad is not None for parameter in model_with_loss.parameters())


def gradients(model_with_loss: ModelWithLoss, one: TrainingTask, bf16: bool) -> torch.Tensor:
    model_with_loss.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model_with_loss(one.batch(0))[0].backward()
    return torch.cat([p.grad.flatten() for p in model_with_loss.parameters() if p.grad is not None])


def one_of_real_heads(family: str) -> TrainingTask:
    """Return a model whose heads have the usual 64 channels: narrower ones are not vectorized."""
    return subject(family, d_model=128, n_heads=2, n_kv_heads=2, context_length=128)


@pytest.mark.parametrize("family", ["llama", "modern_bert", "gpt"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_compiled_block_has_the_gradients_of_a_plain_one(family: str, bf16: bool) -> None:
    """A C++ compiler has made wrong code of torch's: compiled in bf16, a rotary key's gradient was NaN."""
    one = one_of_real_heads(family)
    model_with_loss = prepare_case(one, Case(1))
    expected = gradients(model_with_loss, one, bf16)
    assert isinstance(model_with_loss.model, Transformer)
    for block in model_with_loss.model.blocks:
        compile_block(block)
    found = gradients(model_with_loss, one, bf16)
    torch.compiler.reset()
    assert float((found - expected).norm() / expected.norm()) < (0.02 if bf16 else 1e-5)


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_graph_that_cannot_be_compiled_runs_as_it_is(
    fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compiler may be killed or out of memory: one line is printed for all blocks."""
    from torch._inductor import compile_fx

    def broken(graph: object, inputs: object, *_: object, **named: object) -> object:
        tried.append("backward" if named.get("is_backward") else "forward")
        if tried[-1] == fails:
            raise RuntimeError("C++ compile error\n" + 3000 * "a line of its own\n")
        return lambda values: graph.forward(*values)  # type: ignore[attr-defined]

    tried: list[str] = []
    monkeypatch.setattr(compile_fx.compile_fx, "__defaults__", (broken, *compile_fx.compile_fx.__defaults__[1:]))  # type: ignore[index]
    monkeypatch.setattr(compiling, "_failed", [])
    one = subject("llama")
    model_with_loss = prepare_case(one, Case(1))
    expected = gradients(model_with_loss, one, bf16=False)
    assert isinstance(model_with_loss.model, Transformer)
    for block in model_with_loss.model.blocks:
        compile_block(block)
    torch.compiler.reset()
    found = gradients(model_with_loss, one, bf16=False)
    torch.compiler.reset()
    assert fails in tried
    assert torch.equal(found, expected)
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["warning: a part of the model runs uncompiled, more slowly: RuntimeError: C++ compile error"]


def use_compile_threads() -> None:
    from torch._inductor.async_compile import AsyncCompile

    AsyncCompile.pool().submit(int).result(timeout=60)


def test_a_process_forked_after_a_compilation_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had its parent's pool of threads without the threads, and waited for them without end."""
    from torch._inductor.async_compile import AsyncCompile

    monkeypatch.setattr("torch._inductor.async_compile.get_compile_threads", lambda: 2)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, _: graph.forward)
    torch.compile(lambda values: values + 1, backend=compile_or_run_eager, dynamic=False)(torch.zeros(2))
    torch.compiler.reset()
    AsyncCompile.pool.cache_clear()
    use_compile_threads()
    child = multiprocessing.get_context("fork").Process(target=use_compile_threads)
    child.start()
    child.join()
    AsyncCompile.pool.cache_clear()
    assert child.exitcode == 0
