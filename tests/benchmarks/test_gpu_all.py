"""`make gpu` in its tiny form on a CPU, its deadlines, and the reading of a profile."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import comparison
import gpu_all
import table
from gpu_profile import Kernel, kernel_class, summary


@pytest.mark.long
def test_the_tiny_form_runs_every_part_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its files make the tables."""
    command = [sys.executable, str(gpu_all.BENCHMARKS / "gpu_all.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads((tmp_path / "logs" / "parts.json").read_text())["parts"]
    assert {name: how["ended"] for name, how in ended.items()} == dict.fromkeys(
        ("ceilings", "kernels", "races", "profile"), "done"
    ) | {"truth": "left out: its tests need a GPU"}
    for name in ("gpu_ceilings", "gpu_kernels", "gpu", "gpu_profile"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["figures"], name
        assert not found["missing"], name
        assert table.TABLES[name](found).count("\n") >= 3
        assert str(tmp_path) not in found["command"]
    profiled = json.loads((tmp_path / "gpu_profile.json").read_text())["figures"]
    for way in ("ours", "nanogpt", "half"):
        assert profiled[f"gpt tiny, {way}"]["classes_ms"]["gemm"] > 0
        assert (tmp_path / f"trace_gpt_tiny_{way}.json.gz").stat().st_size > 1000


@pytest.mark.slow
def test_a_late_part_is_ended_with_what_it_started_and_keeps_its_files(tmp_path: Path) -> None:
    script = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    outcome, seconds = gpu_all.run_part([sys.executable, "-c", script], 3.0, tmp_path / "log.txt")
    assert outcome == "ended at its deadline of 3 s; the files have what it measured by then"
    assert seconds < 60
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of the part still runs")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("import no_such_library.part", "left out: no_such_library is not installed"),
        ("raise SystemExit('no memory')", "ended with exit code 1: no memory"),
        ("raise SystemExit(3)", "ended with exit code 3: no output"),
        ("print('measured')", "done"),
    ],
)
def test_a_part_says_how_it_ended(script: str, outcome: str, tmp_path: Path) -> None:
    assert gpu_all.run_part([sys.executable, "-c", script], 60, tmp_path / "log.txt")[0] == outcome


def test_the_parts_fit_their_time_and_the_truth_tests_exist() -> None:
    assert sum(part.share for part in gpu_all.PARTS.values()) == pytest.approx(1)
    assert gpu_all.MINUTES < 9
    for test in gpu_all.TRUTH:
        name, _, function = test.partition("::")
        text = (gpu_all.ROOT / "tests/gpu" / name).read_text(encoding="utf8")
        assert f"def {function.partition('[')[0]}(" in text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "gemm"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("triton_red_fused__to_copy_native_layer_norm_3", "norm and elementwise"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copy"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("embedding_backward_feature_kernel", "embedding"),
        ("my_kernel", "other"),
    ],
)
def test_kernels_are_classed_by_their_names(name: str, kind: str) -> None:
    assert kernel_class(name) == kind


def test_a_profile_has_idle_time_gaps_and_milliseconds_of_one_micro_batch() -> None:
    kernels = [
        Kernel("my_kernel", 3000, 4000),
        Kernel("nvjet_a", 0, 1000),
        Kernel("nvjet_b", 500, 1500),  # on another stream
        Kernel("Memcpy HtoD", 1600, 2000),
    ]
    found = summary(kernels, 2)
    assert found["classes_ms"] == {"gemm": 1.0, "other": 0.5, "copy": 0.2}
    assert found["other_ms"] == {"my_kernel": 0.5}
    assert found["launches"] == 2
    assert found["idle"] == pytest.approx(1.1 / 4, abs=1e-3)
    assert found["gaps_ms"] == [(1.0, "Memcpy HtoD", "my_kernel"), (0.1, "nvjet_b", "Memcpy HtoD")]


def test_a_result_is_saved_whole_at_every_measurement(tmp_path: Path) -> None:
    result = comparison.Result("part", "python benchmarks/x.py", {})
    for number in range(2):
        result.figures[f"figure {number}"] = number
        result.save(tmp_path / "new")
        saved = json.loads((tmp_path / "new" / "part.json").read_text())
        assert list(saved["figures"]) == [f"figure {each}" for each in range(number + 1)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["part.json"]
