"""Write the tables of measurements into docs/results and README.md: `python benchmarks/table.py`.

A page holds its text, and a table between two marks, `<!-- results: NAME -->` and `<!-- /results -->`: NAME is a file
of benchmarks/results. README.md has six rows between `<!-- results -->` and `<!-- /results -->`. With `--check` nothing
is written, and the exit code is 1 if a table is not current; when each was measured is not compared, as that needs the
history of the repository.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from comparison import RESULTS
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
NAMES = {
    "nanogpt": "nanoGPT", "hugging_face": "Hugging Face Trainer", "lightning": "Lightning's defaults",
    "baseline": "nanoGPT's setting",
}  # fmt: skip


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
    for shown, name, what, peer in SUMMARY:
        line = next(line for line in read(name)["lines"] if (line["what"], line["peer"]) == (what, peer))
        theirs = f"{NAMES.get(peer, peer)}: {readable(line['theirs'])} {line['unit']}"
        rows.append((shown, f"{readable(line['ours'])} {line['unit']}", theirs, f"{line['ratio']:.2f}"))
    return markdown(("what", "this code", "beside it", "ratio, above 1 is better"), rows)


def comparisons(result: dict[str, Any]) -> str:
    """Return a row for each comparison with a baseline."""
    rows = []
    for line in result["lines"]:
        theirs = f"{NAMES.get(line['peer'], line['peer'].replace('_', ' '))}: {readable(line['theirs'])}"
        spread = f"{line['ratio']:.2f} ({line['lowest']:.2f} to {line['highest']:.2f})"
        target = "" if line["target"] is None else f"{line['target']:.2f}"
        rows.append((line["what"], f"{readable(line['ours'])} {line['unit']}", theirs, spread, target))
    rows += [(f"{baseline}: missing", "", why, "", "") for baseline, why in result["missing"].items()]
    return markdown(("what", "ours", "baseline", "ratio (lowest to highest)", "target"), rows)


def quality(result: dict[str, Any]) -> str:
    """Return bits per byte of a run and of n-grams."""
    settings, model = result["settings"], result["model"]
    what = f"`{settings['run']}`, {settings['step']:,} steps, {settings['tokens seen in training']:,} tokens"
    grams = [(name, f"{figures['bits_per_byte']:.3f}") for name, figures in result["n-grams"].items()]
    return markdown(("model", "bits per byte"), [(what, f"**{model['bits_per_byte']:.3f}**"), *grams])


def nano_models(result: dict[str, Any]) -> str:
    """Return a row for each family."""
    rows = [
        (f"`{row['model']}`", f"{row['tokens']:,}", *(shown(row[key]) for key in ("bits_per_byte", "masked_accuracy")))
        for row in result["rows"]
    ]
    return markdown(("model", "tokens", "bits per byte", "masked accuracy (30 % masked)"), rows)


def continued(result: dict[str, Any]) -> str:
    """Return the losses on the domain and on the general text before and after; ±: deviation over the seeds."""
    spread = result.get("standard deviation over the seeds", {})

    def loss(when: str, text: str) -> str:
        found, deviation = result["losses"][when][f"{text}/loss"], spread.get(when, {}).get(f"{text}/loss")
        if deviation is None:
            return shown(found)
        change = found - result["losses"]["before"][f"{text}/loss"]
        return f"{found:.3f} ± {deviation:.3f} ({change:+.3f})"

    rows = [
        (f"{result['model']}, {when}", *(loss(when, text) for text in ("domain", "general")))
        for when in result["losses"]
    ]
    return markdown(("model", "domain (nats per token)", "general text"), rows)


def fine_tuning(result: dict[str, Any]) -> str:
    """Return accuracy and F1 on the test set, mean and standard deviation over the seeds."""
    rows = []
    for row in result["rows"]:
        columns = [[figures[name] for figures in row["test"]] for name in ("accuracy", "macro_f1")]
        start = "the base" if row["start"] == "base" else "random weights"
        means = (f"{100 * fmean(each):.1f} ± {100 * stdev(each):.1f} %" for each in columns)
        rows.append((start, f"{row['learning_rate']:g}", *means))
    return markdown((f"start, {len(result['seeds'])} seeds", "learning rate", "test accuracy", "macro F1"), rows)


def glue(result: dict[str, Any]) -> str:
    """Return a row for each task and way: the rate and each metric, mean and standard deviation over the seeds.

    The deviation of a mean score takes the tasks as independent, and a task's metrics as moving together.
    """
    rows = []
    for task in result["rows"][0]["tasks"]:
        for row in result["rows"]:
            found = row["tasks"][task]
            figures = [
                f"{name.capitalize()} {mean:.3f}" + (f" ± {deviation:.3f}" if row["seeds"] > 1 else "")
                for name, (mean, deviation) in found["metrics"].items()
            ]
            rows.append((task, row["name"], str(row["seeds"]), f"{found['learning_rate']:g}", ", ".join(figures)))
    for row in result["rows"]:  # as eval.py counts it: a task's score is the mean of its metrics
        metrics = [found["metrics"].values() for found in row["tasks"].values()]
        score = fmean(fmean(mean for mean, _ in each) for each in metrics)
        deviation = math.hypot(*(fmean(spread for _, spread in each) for each in metrics)) / len(metrics)
        shown_score = f"mean score {score:.3f}" + (f" ± {deviation:.3f}" if row["seeds"] > 1 else "")
        rows.append(("all", row["name"], str(row["seeds"]), "", shown_score))
    return markdown(("task", "fine-tuned by", "seeds", "learning rate", "dev"), rows)


def embeddings(result: dict[str, Any]) -> str:
    """Return the rank correlation with people's scores of the base and after each set of pairs, by seed."""
    figures = result["figures"]
    base = figures["base"]
    rows = [("none: the base, mean of its hidden states", "", "", shown(base["held_out"]), shown(base["dev"]), "")]
    for name, row in figures.items():
        if name != "base":
            rate = f"{row['learning_rate']:g}"
            gain = f"{fmean(row['dev']) - base['dev']:+.3f}"
            dev = ", ".join(map(shown, row["dev"]))
            rows.append((name, f"{row['pairs']:,}", rate, shown(row["held_out"][rate]), dev, gain))
    return markdown(("pairs", "number", "learning rate", "held out of train", "dev", "more than the base"), rows)


def novels(result: dict[str, Any]) -> str:
    """Return what the causal and the masked model have learned."""
    rows = [
        (
            name,
            f"{figures['parameters'] / 1e6:.1f} M",
            f"{figures['tokens_seen'] / 1e6:.1f} M",
            f"{figures['bits_per_byte']:.3f} bits per byte"
            if "bits_per_byte" in figures
            else f"{figures['accuracy']:.1%} masked accuracy",
        )
        for name in ("causal", "masked")
        if (figures := result["figures"].get(name))
    ]
    return markdown(("objective", "parameters", "tokens", "on four other novels"), rows)


def objectives(result: dict[str, Any]) -> str:
    """Return a row for each objective and number of passes, over the cells that are done."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    order = ("causal", "masked", "hybrid", "diffusion", "gpt_bert")

    def place(cell: dict[str, Any]) -> tuple[bool, int, int]:
        return "whole" in cell["cell"], cell["epochs"], order.index(cell["objective"])

    for cell in sorted(result["figures"]["cells"], key=place):
        passes = "all novels once" if "whole" in cell["cell"] else f"{cell['epochs']}"
        groups.setdefault((passes, cell["objective"]), []).append(cell)
    rows = []
    for (passes, name), cells in groups.items():
        bound = "bits_per_byte_bound" in cells[0]
        likelihood = spread([cell["bits_per_byte_bound" if bound else "bits_per_byte"] for cell in cells], shown)
        pairs, *shares = (
            spread([cell[key] for cell in cells if key in cell], percent)
            for key in ("minimal_pairs", "infill_1", "infill_3", "infill_8")
        )
        masked = [cell["minimal_pairs_masked"] for cell in cells if "minimal_pairs_masked" in cell]
        pairs += f"; as a masked model {spread(masked, percent)}" if len(masked) == len(cells) else ""
        seconds = f"{fmean(cell['seconds'] for cell in cells):,.0f}"
        rows.append((passes, name, f"{len(cells)}", f"{'at most ' * bound}{likelihood}", pairs, *shares, seconds))
    head = (
        "passes",
        "objective",
        "seeds",
        "bits per byte",
        "minimal pairs",
        "infill 1 word",
        "3 words",
        "8 words",
        "s",
    )
    return markdown(head, rows) if rows else "No cell has been measured yet."


def mup_transfer(result: dict[str, Any]) -> str:
    """Return the best rate of each width in both parametrizations, with its loss."""
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for found in result["figures"]["best"]:
        cells.setdefault((found["optimizer"], found["width"]), {})[found["parametrization"]] = found
    rows = []
    for (optimizer, width), by_name in cells.items():
        both = [
            (f"{found['rate']:.5f}", ", ".join(f"{rate:.5f}" for rate in found["of_seeds"]), f"{found['loss']:.3f}")
            if found
            else ("", "", "")
            for found in (by_name.get("standard"), by_name.get("mup"))
        ]
        rows.append((optimizer, str(width), *both[0], *both[1]))
    head = (
        "optimizer", "width", "best rate, standard", "of each seed", "loss", "best rate, muP", "of each seed", "loss",
    )  # fmt: skip
    return markdown(head, rows)


def scaling_ladder(result: dict[str, Any]) -> str:
    """Return the losses of a ladder, its law with intervals, and the held-out run as predicted and as trained."""
    figures, about = result["figures"], ("loss", "fitted")
    rows = [
        (run["size"], readable(run["parameters"]), readable(run["tokens"]), *(f"{run[one]:.3f}" for one in about))
        for run in figures["runs"]
    ]
    held_out = figures["held out"]
    predicted = held_out["predicted"]
    between = f"{predicted['value']:.3f} ({predicted['low']:.3f} to {predicted['high']:.3f})"
    sizes = readable(held_out["parameters"]), readable(held_out["tokens"])
    rows.append((f"**{held_out['size']}, held out**", *sizes, f"{held_out['loss']:.3f}", between))
    law = ", ".join(
        f"{name} = {range_['value']:.3g} ({range_['low']:.3g} to {range_['high']:.3g})"
        for name, range_ in figures["constants"].items()
    )
    head = ("layers x width", "parameters", "tokens", "loss", "by the law")
    return (
        f"{markdown(head, rows)}\n\nL(N, D) = E + A / N^alpha + B / D^beta with {law}. Intervals hold "
        f"{figures['confidence']:.0%}; all runs took {figures['seconds'] / 60:.0f} minutes."
    )


def local_attention(result: dict[str, Any]) -> str:
    """Return the losses on unseen novels by model and window, of each seed."""
    rows = [
        (f"`{row['model']}`", "none: the whole row" if row["window"] == "none" else f"{row['window']} tokens",
         ", ".join(map(shown, row["losses"])), shown(fmean(row["losses"])))
        for row in result["figures"]["rows"]
    ]  # fmt: skip
    return markdown(("model", "window", "loss of each seed", "mean"), rows)


def averages(result: dict[str, Any]) -> str:
    """Return the losses of averages of the weights and of a decay, of each seed."""
    rows = result["figures"]["rows"]
    decayed = fmean(rows[-1]["losses"])
    lines = [
        (row["weights"], ", ".join(map(shown, row["losses"])), shown(fmean(row["losses"])),
         f"{fmean(row['losses']) - decayed:+.3f}")
        for row in rows
    ]  # fmt: skip
    return markdown(("weights", "loss of each seed", "mean", "above the decayed branch"), lines)


def novels_settings(result: dict[str, Any]) -> str:
    """Return the losses of each choice of settings, and how they differ from the recipe's."""
    rows = []
    for row in result["figures"]["rows"]:
        difference, low, high = row["difference"], "", ""
        if difference:
            low, high = (f"{bound:+.3f}" for bound in difference["interval"])
        against = f"{difference['value']:+.3f} ({low} to {high})" if difference else ""
        p = f"{row['p_holm']:.2g}" if difference else ""
        rows.append(
            (f"`{row['choice']}`", ", ".join(map(shown, row["losses"])), shown(fmean(row["losses"])), against, p)
        )
    return markdown(("settings", "loss of each seed", "mean", "against the recipe, 95 % interval", "p, Holm"), rows)


def against_commit(result: dict[str, Any]) -> str:
    """Return the losses per byte of this code and of an earlier commit, and how they differ."""
    rows = []
    names = {"before": f"commit {result['settings']['commit']}", "now": "this code"}
    names["now_characters"] = "this code, reading characters"
    for row in result["figures"]["rows"]:
        difference, against, p = row["difference"], "", ""
        if difference:
            low, high = difference["interval"]
            against, p = f"{difference['value']:+.4f} ({low:+.4f} to {high:+.4f})", f"{row['p_holm']:.2g}"
        losses, steps = row["bits_per_byte"], ", ".join(f"{each:,}" for each in row["steps"])
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        rows.append((names[row["code"]], steps, each, f"{fmean(losses):.4f}", against, p))
    head = ("code", "steps of each seed", "bits per byte", "mean", "against the commit, 95 % interval", "p, Holm")
    return markdown(head, rows)


def convert_stories(result: dict[str, Any]) -> str:
    """Return the bounds of the converted model and of random weights, and how much of a sample is copied."""
    figures = result["figures"]
    rows = []
    for name, start in (("converted", "stories260K"), ("random", "random weights")):
        row = figures[name]
        bits = f"at most {row['bits_per_byte']:.3f} ± {row['standard_error']:.3f}"
        copied = f"{row['sample']['copied_words']}"
        rows.append((start, f"{row['steps']:,}", f"{row['tokens_seen'] / 1e6:.1f} M", bits, copied))
    rows.append(("stories260K as it came, causal", "", "", shown(figures["base"]["bits_per_byte"]), ""))
    lead, copied = figures["random minus converted"], figures["copied words of held-out stories"]
    head = ("start", "steps", "tokens", "bits per byte", "longest copied run of a sample, words")
    return (
        f"{markdown(head, rows)}\n\nThe bound is {lead['nats_per_token']:.3f} ± {lead['standard_error']:.3f} nats per "
        f"token lower from stories260K. The longest run of words that a held-out story shares with a training story is "
        f"{copied['median']:.0f} words in the median and {copied['most']} at most."
    )


def minimal_pairs(result: dict[str, Any]) -> str:
    """Return the accuracy on BLiMP."""
    figures = result["figures"]
    row = (result["settings"]["model"], f"{figures['parameters'] / 1e6:.2f} M", f"{figures['pairs']:,}")
    head = ("model", "parameters", "pairs", "accuracy", "seconds")
    return markdown(head, [(*row, f"{figures['accuracy']:.1%}", f"{figures['seconds']:.0f}")])


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


def near_duplicates(result: dict[str, Any]) -> str:
    """Return recall by similarity for each preset, precision, and what was compared with datatrove."""
    figures = result["figures"]
    recalls = {name.partition(": ")[2]: bins for name, bins in figures.items() if name.startswith("recall")}
    rows = [(each, *(recall[each] for recall in recalls.values())) for each in next(iter(recalls.values()))]
    rest = [("planted pairs of 1,000 articles", figures["articles"])]
    rest += [(f"datatrove's MinHash: {name}", value) for name, value in figures["datatrove"].items()]
    rest += [(name, value) for name, value in figures.items() if isinstance(value, str) and name != "articles"]
    tables = [
        markdown(("similarity of the pair", *(f"found by {name}" for name in recalls)), rows),
        markdown(("removed documents with a kept twin, by brute force", "share"), list(figures["precision"].items())),
        markdown(("what", "result"), rest),
    ]
    return "\n\n".join([*tables, comparisons(result)])


def personal_data(result: dict[str, Any]) -> str:
    """Return the tables of personal data: each kind, and texts that have none."""
    figures = result["figures"]
    lines = ["| kind | labeled | recall | found | precision |", "|---|---|---|---|---|"]
    for kind, each in figures["kinds"].items():
        recall = f"{each['recalled'] / each['labeled']:.3f}" if each["labeled"] else ""
        precision = f"{each['right'] / each['found']:.3f}" if each["found"] else ""
        lines.append(f"| {kind} | {each['labeled']} | {recall} | {each['found']} | {precision} |")
    negatives, reviews = figures["negatives"], figures["reviews"]
    lines += ["", "| what | result |", "|---|---|"]
    lines.append(f"| negatives with a false find | {negatives['with a false find']} of {negatives['texts']} |")
    lines.append(f"| found in reviews | {reviews['found']} in {reviews['texts']:,} |")
    lines.append(f"| all kinds, MB/s of reviews | {reviews['MB/s']} |")
    return "\n".join(lines)


def curation_agreement(result: dict[str, Any]) -> str:
    """Return how many texts each filter of datatrove decides as we do, and how often each rule removes one."""
    filters = result["figures"]["filters"]
    columns = tuple(next(iter(filters.values())))
    rows = [(f"`{name}`", *(f"{counts[each]:,}" for each in columns)) for name, counts in filters.items()]
    removed = [(f"`{rule}`", f"{count:,}") for rule, count in result["figures"]["removed"].items()]
    heading = (f"filter of datatrove, {result['settings']['texts']:,} texts", *columns)
    tables = [markdown(heading, rows), markdown(("rule", "texts that it removes"), removed)]
    if other_words := result["figures"].get("words of spaCy"):
        names = tuple(next(iter(other_words.values())))
        columns = ("its words those of spaCy, unchanged English texts", *names, "decided alike")
        tables.append(markdown(columns, [(f"`{name}`", *alike(counts)) for name, counts in other_words.items()]))
    return "\n\n".join(tables)


def alike(counts: dict[str, int]) -> tuple[str, ...]:
    """Return the counts of texts, and the share of those that both keep or both remove."""
    share = (counts["kept by both"] + counts["removed by both"]) / sum(counts.values())
    return (*(f"{count:,}" for count in counts.values()), f"{share:.1%}")


TIMED_BY_ROUND = ("two workers over one", "new threshold, MB/s")


def curation_speed(result: dict[str, Any]) -> str:
    """Return the comparison and what else was timed, or the peak memory by number of documents."""
    if peaks := result["figures"].get("peak MiB of the largest process, by documents"):
        rows = [(count, f"{peak} MiB") for count, peak in peaks.items()]
        return markdown(("documents", "peak memory of the largest process"), rows)
    others = [(name, ", ".join(f"{each:.2f}" for each in result["figures"][name])) for name in TIMED_BY_ROUND]
    return f"{comparisons(result)}\n\n{markdown(('what', 'each round'), others)}"


def curation_worth(result: dict[str, Any]) -> str:
    """Return what was planted and kept, and how well the models of both corpora do."""
    arms, settings, found = result["arms"], result["settings"], result["difference"]
    kept = [
        (kind, f"{count:,}", *(f"{arm['kept'].get(kind, 0):,}" for arm in arms.values()))
        for kind, count in result["planted"].items()
    ]
    scores = [
        (name, f"{arm['tokens'][0]:,}", f"**{fmean(arm['bits_per_byte']):.3f}**",
         ", ".join(f"{value:.3f}" for value in arm["bits_per_byte"]))
        for name, arm in arms.items()
    ]  # fmt: skip
    interval = f"{found['mean']:+.3f} (95 %: {found['low']:+.3f} to {found['high']:+.3f})"
    scores.append(("curated minus as it is", "", interval, ""))
    head = (f"`{settings['model']}`, {settings['steps']} steps", "tokens", "bits per byte", "by seed")
    return f"{markdown(('documents', 'planted', *arms), kept)}\n\n{markdown(head, scores)}"


def extraction(result: dict[str, Any]) -> str:
    """Return F1 and speed of each extractor."""
    rows = [
        (f"`{name}`", f"**{each['f1']:.3f}**", f"{each['precision']:.3f}", f"{each['recall']:.3f}",
         f"{each['pages_per_s']:.0f}", f"{each['megabytes_per_s']:.1f}")
        for name, each in result["figures"].items()
    ]  # fmt: skip
    head = (f"{result['settings']['pages']} pages", "F1", "precision", "recall", "pages/s", "MB of HTML/s")
    return f"{markdown(head, rows)}\n\n{comparisons(result)}"


def language_identification(result: dict[str, Any]) -> str:
    """Return how many paragraphs and sentences of each language are found to be in it, the worst languages first."""
    right = result["figures"]["right"]
    ordered = sorted(right, key=lambda language: (right[language]["paragraphs"], right[language]["sentences"]))
    kinds = ("paragraphs", "sentences")
    rows = [(f"`{name}`", *(percent(right[name][kind]) for kind in kinds)) for name in ordered[:12]]
    rest = ordered[12:]
    rows.append(
        (
            f"{len(rest)} others, the worst of each",
            *(percent(min(right[name][kind] for name in rest)) for kind in kinds),
        )
    )
    speed = result["figures"]["million characters a second"]
    unknown = ", ".join(result["figures"]["unknown to the model"])
    note = f"{speed:.1f} million characters a second on one core. The model does not know {unknown}."
    return f"{markdown(('language', *kinds), rows)}\n\n{note}"


def curation_web_speed(result: dict[str, Any]) -> str:
    """Return the comparisons of the whole chain, and the peak memory."""
    peaks = result["figures"]["peak MiB of the largest process"]
    memory = markdown(
        ("how", "peak memory of the largest process"), [(how, f"{each} MiB") for how, each in peaks.items()]
    )
    return f"{comparisons(result)}\n\n{memory}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {  # by script; the others have comparisons
    "quality": quality,
    "nano_models": nano_models,
    "continued_pretraining": continued,
    "fine_tuning": fine_tuning,
    "glue": glue,
    "embeddings": embeddings,
    "novels": novels,
    "objectives": objectives,
    "mup_transfer": mup_transfer,
    "scaling_ladder": scaling_ladder,
    "local_attention": local_attention,
    "averages": averages,
    "novels_settings": novels_settings,
    "against_commit": against_commit,
    "convert_stories": convert_stories,
    "minimal_pairs": minimal_pairs,
    "start_up": start_up,
    "gpu": gpu,
    "gpu_ceilings": gpu_ceilings,
    "gpu_kernels": gpu_kernels,
    "gpu_profile": gpu_profile,
    "gpu_plan": gpu_plan,
    "plan_accuracy": plan_accuracy,
    "near_duplicates": near_duplicates,
    "curation_agreement": curation_agreement,
    "personal_data": personal_data,
    "curation_speed": curation_speed,
    "curation_web_speed": curation_web_speed,
    "curation_worth": curation_worth,
    "extraction": extraction,
    "language_identification": language_identification,
}


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *map(_row, rows)])


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def shown(value: float | None) -> str:
    """Return a figure with three decimals; nothing for None."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{value:.1%}"


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Return the mean, and with several values the lowest and highest; nothing for none."""
    if len(values) < 2:
        return "".join(map(show, values))
    return f"{show(fmean(values))} ({show(min(values))} to {show(max(values))})"


def readable(value: float) -> str:
    """Return a figure with three significant digits or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


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
