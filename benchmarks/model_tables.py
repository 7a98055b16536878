"""Tables of what trained models are worth, one function for each saved result."""

import math
from statistics import fmean, stdev
from typing import Any

from markdown_table import markdown, readable, shown, spread


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
        shares = [
            spread([100 * cell[key] for cell in cells if key in cell], "{:.1f}".format)
            for key in ("minimal_pairs", "minimal_pairs_masked", "infill_1", "infill_3", "infill_8")
        ]
        if name == "masked":  # scored as what it is
            shares[:2] = "", shares[0]
        seconds = f"{fmean(cell['seconds'] for cell in cells):,.0f}"
        rows.append((passes, name, f"{len(cells)}", f"{'≤ ' * bound}{likelihood}", *shares, seconds))
    head = (
        "passes", "objective", "seeds", "bits per byte", "pairs, %", "pairs as a masked model, %",
        "infill of 1 word, %", "3 words, %", "8 words, %", "s",
    )  # fmt: skip
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
