"""What the compiler makes of a block: one graph, or each break in it costs what compiling was to save."""

import shutil

import pytest
import torch
from subjects import subject

from pretrain import matrix_products
from pretrain.parallel.parity import Case, prepared

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor"),
]


@pytest.mark.parametrize("family", ["llama", "modern_bert"])
@pytest.mark.parametrize("few", [matrix_products.FEW, 1000], ids=["small products", "large products"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_block_is_one_graph(family: str, few: int, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_products, "FEW", few)
    one = subject(family, dropout=0.1)
    learner = prepared(one, Case(1))
    for block in learner.model.blocks:
        block.compile(dynamic=False, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        learner(one.batch(0))[0].backward()
    torch.compiler.reset()
    assert all(parameter.grad is not None for parameter in learner.parameters())
