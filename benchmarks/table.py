"""Write the tables of measurements into docs/results and README.md: `python benchmarks/table.py`.

A page holds its text, and a table between two marks, `<!-- results: NAME -->` and `<!-- /results -->`: NAME is a file
of benchmarks/results. README.md has six rows between `<!-- results -->` and `<!-- /results -->`. With `--check` nothing
is written, and the exit code is 1 if a table is not current; when each was measured is not compared, as that needs the
history of the repository.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curation_tables
import model_tables
from comparison import RESULTS
from markdown_table import NAMES, comparisons, markdown, readable, shown
from provenance import ROOT, command_of, machine_line, measured_line, script_of

README, FOLDER = ROOT / "README.md", ROOT / "docs/results"
PAGES = [
    README,
    *(FOLDER / f"{name}.md" for name in ("quality", "objectives", "cpu", "gpu", "plan-accuracy", "curation")),
]
BLOCK = re.compile(r"<!-- results(?:: (?P<name>\w+))? -->\n(?P<table>.*?)<!-- /results -->", re.S)
MEASURED = re.compile(r"^Measured at .*\n", re.M)
SUMMARY = (  # of README: what is shown, result, line, baseline
    (
        "Shakespeare in characters, seconds to the same loss, CPU",
        "time_to_loss",
        "Shakespeare, to the baseline's loss",
        "baseline",
    ),
    ("training GPT-2 small, CPU", "training_step", "training, gpt 124m, 4 x 512 tokens", "nanogpt"),
    ("generation, batch 1, int8, CPU", "generation", "generation, batch 1, prompt 32, int8", "transformers"),
    ("training GPT-2 small, one H200", "gpu", "training, gpt 124m gpu, 8 x 16 x 1024 tokens", "nanogpt"),
    ("peak memory of that training", "gpu", "peak memory, gpt 124m gpu, 8 x 16 x 1024 tokens", "hugging_face"),
)
OF_GPUS = ("gpu_ceilings", "gpu_kernels", "gpu_profile")  # of `make gpu`; their tables wait for one


def read(name: str) -> dict[str, Any]:
    """Return a saved result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf8"))
    return found


def block(name: str | None, with_commit: bool = True) -> str:
    """Return what stands between the marks of a result, or with None of README's summary."""
    if name is None:
        return f"{summary()}\n"
    path = RESULTS / f"{name}.json"
    if not path.exists() and name in OF_GPUS:
        return "\nNot measured yet. Command, where there is a GPU: `make gpu`.\n\n"
    if not path.exists():
        raise SystemExit(f"{path} does not exist, and a page has the mark <!-- results: {name} -->. Take it out.")
    result = read(name)
    table = TABLES.get(script_of(path).stem, comparisons)(result)
    facts = f"Machine: {machine_line(result)}. Command: `{command_of(result, script_of(path))}`.\n"
    return "\n" + facts + (measured_line(path) + "\n" if with_commit else "") + "\n" + table + "\n\n"


def summary() -> str:
    """Return README's six rows."""
    quality = read("quality_gpt_nano")
    bits, ngram = quality["model"]["bits_per_byte"], quality["n-grams"]["5-gram"]["bits_per_byte"]
    first = ("held-out bits per byte after `make train`", f"{bits:.3f}", f"5-gram, Kneser-Ney: {ngram:.3f}")
    rows = [(*first, f"{ngram / bits:.2f}")]
    for label, name, what, peer in SUMMARY:
        line = next(line for line in read(name)["lines"] if (line["what"], line["peer"]) == (what, peer))
        theirs = f"{NAMES.get(peer, peer)}: {readable(line['theirs'])} {line['unit']}"
        rows.append((label, f"{readable(line['ours'])} {line['unit']}", theirs, f"{line['ratio']:.2f}"))
    return markdown(("what", "this code", "beside it", "ratio, above 1 is better"), rows)


def start_up(result: dict[str, Any]) -> str:
    """Return the seconds of each start."""
    rows = [
        (
            name,
            f"{figures['median_s']:.2f} ({figures['lowest_s']:.2f} to {figures['highest_s']:.2f})",
            shown(figures.get("target_s")),
        )
        for name, figures in result["figures"].items()
        if isinstance(figures, dict)
    ]
    return markdown(("what", "seconds, median (lowest to highest)", "target"), rows)


def gpu(result: dict[str, Any]) -> str:
    """Return speed, utilization and memory of ours, and the comparisons."""
    rows = [
        (what, f"{figures['tokens_per_s']:,}", f"{figures['mfu']:.0%}", f"{figures['peak_mib'] / 1024:.1f} GiB")
        for what, figures in result["figures"].items()
    ]
    head = ("ours", "tokens/s", "of the GPU's documented peak (MFU)", "peak memory")
    return f"{markdown(head, rows)}\n\n{comparisons(result)}"


def gpu_ceilings(result: dict[str, Any]) -> str:
    """Return what a GPU reaches, and whether its host was free."""
    return markdown(("what", "figure"), [(what, str(figure)) for what, figure in result["figures"].items()])


def gpu_kernels(result: dict[str, Any]) -> str:
    """Return time, error and determinism of each kernel."""
    rows = []
    for what, figures in result["figures"].items():
        case, _, kernel = what.rpartition(": ")
        error = "" if figures["error"] is None else f"{figures['error']:.1g}"
        peak = f"{figures['peak_mib']:,}" if "peak_mib" in figures else ""
        rows.append((case, kernel, f"{figures['ms']:.3g}", error, "yes" if figures["deterministic"] else "no", peak))
    rows += [("missing", kernel, "", why, "", "") for kernel, why in result["missing"].items()]
    return markdown(("what", "kernel", "ms, forward and backward", "error", "deterministic", "MiB"), rows)


def gpu_profile(result: dict[str, Any]) -> str:
    """Return where the time of a micro-batch goes, ours and a peer's."""
    rows = []
    for what, figures in result["figures"].items():
        classes = ", ".join(f"{kind} {ms:.3g}" for kind, ms in figures["classes_ms"].items())
        host = "yes" if figures.get("host_bound") else "no"
        times = [shown(figures.get(key)) for key in ("enqueue_ms", "gpu_ms")]
        rows.append((what, *times, host, f"{figures['idle']:.0%}", f"{figures['launches']:,}", classes))
    rows += [(f"{what}: missing", "", "", "", "", "", why) for what, why in result["missing"].items()]
    head = ("micro-batch", "host, ms", "GPU, ms", "waits for the host", "idle", "launches", "ms by class of kernel")
    return markdown(head, rows)


def gpu_plan(result: dict[str, Any]) -> str:
    """Return estimated and measured memory of each shape."""
    rows = [
        (what.replace("_", " "), f"{figures['forecast_mib']:,}", f"{figures['measured_mib']:,}", figures["error"])
        for what, figures in result["figures"].items()
    ]
    return markdown(("run", "estimated MiB", "measured MiB", "error"), rows)


def plan_accuracy(result: dict[str, Any]) -> str:
    """Return estimated and measured memory and time of each run."""
    rows = [
        (
            row["case"],
            *(f"{row[key]:,}" for key in ("forecast_mib", "measured_mib")),
            f"{row['memory_error']:+.1%}",
            *(f"{row[key]:.2f}" for key in ("forecast_step_s", "measured_step_s")),
            f"{row['time_error']:+.1%}",
        )
        for row in result["rows"]
    ]
    head = ("run", "estimated MiB", "measured MiB", "error", "estimated s a step", "measured s a step", "error")
    return markdown(head, rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {  # by script; the others have comparisons
    "quality": model_tables.quality,
    "nano_models": model_tables.nano_models,
    "continued_pretraining": model_tables.continued,
    "fine_tuning": model_tables.fine_tuning,
    "glue": model_tables.glue,
    "embeddings": model_tables.embeddings,
    "novels": model_tables.novels,
    "objectives": model_tables.objectives,
    "mup_transfer": model_tables.mup_transfer,
    "scaling_ladder": model_tables.scaling_ladder,
    "local_attention": model_tables.local_attention,
    "averages": model_tables.averages,
    "novels_settings": model_tables.novels_settings,
    "against_commit": model_tables.against_commit,
    "convert_stories": model_tables.convert_stories,
    "minimal_pairs": model_tables.minimal_pairs,
    "start_up": start_up,
    "gpu": gpu,
    "gpu_ceilings": gpu_ceilings,
    "gpu_kernels": gpu_kernels,
    "gpu_profile": gpu_profile,
    "gpu_plan": gpu_plan,
    "plan_accuracy": plan_accuracy,
    "near_duplicates": curation_tables.near_duplicates,
    "curation_agreement": curation_tables.curation_agreement,
    "personal_data": curation_tables.personal_data,
    "curation_speed": curation_tables.curation_speed,
    "curation_web_speed": curation_tables.curation_web_speed,
    "curation_worth": curation_tables.curation_worth,
    "extraction": curation_tables.extraction,
    "language_identification": curation_tables.language_identification,
}


def filled(text: str, with_commit: bool = True) -> str:
    """Return the text of a page with the tables of the saved results between its marks."""

    def replaced(found: re.Match[str]) -> str:
        opening = found[0].partition("\n")[0]
        return f"{opening}\n{block(found['name'], with_commit)}<!-- /results -->"

    return BLOCK.sub(replaced, text)


def is_current(path: Path) -> bool:
    """Return whether the tables of a page are those of the saved results, but for when they were measured."""
    text = path.read_text(encoding="utf8")
    return MEASURED.sub("", text) == filled(text, with_commit=False)


def main() -> None:
    """Write the tables into the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        old = [str(path.relative_to(ROOT)) for path in PAGES if not is_current(path)]
        sys.exit(
            f"not the tables of benchmarks/results: {', '.join(old)}. Run: python benchmarks/table.py" if old else 0
        )
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf8")), encoding="utf8")


if __name__ == "__main__":
    main()
