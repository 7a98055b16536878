"""The dtype of a run depends on the device's abilities, not on its load."""

from pathlib import Path

import pytest
import torch

from pretrain.kernels import device
from pretrain.kernels.device import bf16_is_fast, matmul_flops_per_s

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("machine", "capability", "flags", "fast"),
    [
        ("x86_64", "AVX512", "flags : avx2 avx512f avx512_bf16 avx_vnni", True),
        ("x86_64", "AVX512", "flags : avx2 avx512f amx_bf16 amx_tile", True),
        ("x86_64", "AVX512", "flags : avx2 avx512f", False),
        ("x86_64", "AVX2", "flags : avx2 avx512f avx512_bf16", False),  # torch is told to use less
        ("aarch64", "DEFAULT", "Features : fp asimd i8mm bf16", True),
        ("aarch64", "DEFAULT", "Features : fp asimd", False),
    ],
)
def test_a_cpu_computes_in_bf16_if_it_has_the_instructions(
    machine: str, capability: str, flags: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert bf16_is_fast(CPU) is fast
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert bf16_is_fast(CPU) is fast
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not bf16_is_fast(CPU)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA GeForce RTX 4090", 165.2), ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA T400", None),
        ("NVIDIA GeForce RTX 5090 D", None), ("NVIDIA GH200 480GB", None),
    ],
)  # fmt: skip
def test_a_documented_peak_is_that_of_the_very_gpu(
    name: str, tera: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(device, "matmul_flops_per_s", lambda *given: 1.0)
    peak, source = device.peak_flops_per_s(torch.device("cuda"), torch.float16)
    assert (peak, source) == (1.0, "measured") if tera is None else peak == pytest.approx(tera * 1e12)


def test_a_matmul_is_measured_at_least_once() -> None:
    assert matmul_flops_per_s(CPU, torch.float32, 0.0) > 1e7
