"""Compare groups of runs: final values with interval and p-value; steps, tokens and seconds to a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from pretrain.errors import ConfigError
from pretrain.planning.units import count
from pretrain.reports.groups import Curves, Group, Member, Reached, differing, differing_environments
from pretrain.reports.significance import Difference, Interval, holm, interval_of_mean, welch

_PER_BYTE = ("val/bits_per_byte", "val/bits_per_byte_bound")
_RISES = ("accuracy", "f1", "accuracy_per_byte", "matthews", "pearson", "spearman", "ndcg", "recall", "score")
_FASTER = ("speed/tokens_per_s", "speed/mfu")


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    folder: str
    seed: str
    final: float
    steps: int
    tokens: float | None
    seconds: float | None  # in steps
    reached: Reached | None  # None: it never met the target
    finished: bool


@dataclass(frozen=True)
class GroupOutcome:
    """What came of the runs of a group, and how it differs from the first group."""

    name: str
    runs: list[Outcome]
    mean: float
    deviation: float | None  # of the sample; None for one run, as for the interval
    interval: Interval | None
    difference: Difference | None  # None: it is the first
    p_holm: float | None  # of all comparisons together

    def mean_to_target(self, name: str) -> float | None:
        """Return the mean steps, tokens or seconds to the target; None if a run never met it or it is unknown."""
        found = [getattr(each.reached, name, None) for each in self.runs]
        known = [float(value) for value in found if value is not None]
        return fmean(known) if len(known) == len(found) else None


@dataclass(frozen=True)
class Comparison:
    """Groups of runs by one metric."""

    metric: str
    falls: bool  # whether less is better
    confidence: float
    target: float
    groups: list[GroupOutcome]
    settings: dict[str, list[str]]  # that differ, with their values by group
    environment: dict[str, list[str]]  # likewise
    warnings: list[str]  # why figures mislead
    notes: list[str]


@dataclass(frozen=True)
class CompareOptions:
    """What to compare by; `metric` auto is val/loss, or bits per byte where tokenizers differ."""

    metric: str = "auto"
    target: float | None = None  # None: the worst final value, which every run meets
    confidence: float = 0.95


def compare(groups: Sequence[Group], options: CompareOptions, left_out: Sequence[str] = ()) -> Comparison:
    """Return the comparison of all groups with the first one.

    Raises ConfigError for a metric that a run lacks, and for fewer than two groups.
    """
    if len(groups) < 2:
        runs = sum(len(group.members) for group in groups)
        counted = f"{runs} of one experiment" if runs else "there is none"
        raise ConfigError(
            f"runs: {counted}, and a comparison takes two experiments. Name runs or folders of runs: "
            "runs=[logs/a,logs/b]; runs that differ only in their seed are one experiment."
            + "".join(f" {line}." for line in left_out)
        )
    metric, unfair = _metric(groups, options.metric)
    groups, failed = _without_failed(groups, metric)
    falls = not rises(metric)
    finals = [[_final(member, metric) for member in group.members] for group in groups]
    worst = max if falls else min
    target = worst(value for each in finals for value in each) if options.target is None else options.target
    outcomes = [
        [_outcome(member, metric, target, falls=falls) for member in group.members] for group in groups
    ]  # fmt: skip
    differences = [welch(values, finals[0], options.confidence) for values in finals[1:]]
    adjusted = iter(holm([each.p for each in differences if each.p is not None]))
    found = []
    for position, (group, values) in enumerate(zip(groups, finals, strict=True)):
        difference = differences[position - 1] if position else None
        p_holm = next(adjusted) if difference is not None and difference.p is not None else None
        deviation = stdev(values) if len(values) > 1 else None
        interval = interval_of_mean(values, options.confidence)
        found.append(
            GroupOutcome(group.name, outcomes[position], fmean(values), deviation, interval, difference, p_holm)
        )
    settings, environment = differing(groups), differing_environments(groups)
    warnings, notes = [*unfair, *failed], [*_bounds(groups, metric), *_unequal(found), *left_out]
    return Comparison(metric, falls, options.confidence, target, found, settings, environment, warnings, notes)


def rises(metric: str) -> bool:
    """Return whether more of a metric is better: accuracies, correlations, ranks found, phenomena, speeds."""
    *above, last = metric.split("/")
    return metric in _FASTER or "phenomenon" in above or last.partition("@")[0] in _RISES


def _without_failed(groups: Sequence[Group], metric: str) -> tuple[list[Group], list[str]]:
    """Return the groups without runs that diverged or ended in an error, and warnings that name them.

    Groups of which no run is left are left out too. Raises ConfigError if that is the first one, or leaves one alone.
    """
    kept, warnings = [], []
    alone = sum(any(not _has_no_outcome(member, metric) for member in group.members) for group in groups) < 2
    for group in groups:
        diverged = [str(member.run.folder) for member in group.members if member.run.has_diverged(metric)]
        failed = [str(member.run.folder) for member in group.members if member.run.has_failed]
        left = [member for member in group.members if not _has_no_outcome(member, metric)]
        if not left and (alone or group is groups[0]):
            what = f"{diverged[0]} has diverged, its {metric} is no number" if diverged else f"{failed[0]} has failed"
            raise ConfigError(f"runs: {what}, and {group.name} has no other run. Leave it out of runs.")
        if not left:
            named = ", ".join([*diverged, *failed])
            warnings.append(f"EVERY RUN OF {group.name} DIVERGED OR FAILED ({named}): the group is left out.")
            continue
        for word, folders in (("DIVERGED", diverged), ("FAILED BEFORE THEIR END", failed)):
            if folders:
                warnings.append(
                    f"{len(folders)} OF {len(group.members)} RUNS OF {group.name} {word} ({', '.join(folders)}): they "
                    "are left out, so its figures are better than its settings."
                )
        kept.append(replace(group, members=left))
    return kept, warnings


def _has_no_outcome(member: Member, metric: str) -> bool:
    return member.run.has_diverged(metric) or member.run.has_failed


def _metric(groups: Sequence[Group], asked: str) -> tuple[str, list[str]]:
    """Return the metric to compare by, and warnings about what makes it unfair."""
    members = [member for group in groups for member in group.members]
    tokenizers_differ, objectives = _tokenizers_differ(members), {_objective(member) for member in members}
    texts = _texts(members, one_tokenizer=not tokenizers_differ)
    warnings = []
    metric = "val/loss" if asked == "auto" else asked
    if tokenizers_differ:
        per_byte = next((name for name in _PER_BYTE if all(_has(member, name) for member in members)), "")
        if asked == "auto" and per_byte:
            metric = per_byte
        advice = f"{metric} is compared" if metric in _PER_BYTE else "compare them by metric=val/bits_per_byte"
        warnings.append(f"THE TOKENIZERS DIFFER: a loss per token means something else in each run; {advice}.")
    if len(texts) > 1:
        warnings.append(
            "THE TEXT DIFFERS: each run is validated on its own held-out text, so its figures do not compare. Score "
            "all of them on one text, by eval path=<text>, or train with data.validation_path=<text>."
        )
    if len(objectives) > 1:
        warnings.append(
            f"THE OBJECTIVES DIFFER ({', '.join(sorted(objectives))}): a causal loss, a masked one and the bound of a "
            "diffusion are of different tasks."
        )
    elif tasks := _differing_tasks(groups, metric):
        warnings.append(
            f"THE TASKS DIFFER ({'; '.join(tasks)}): what is predicted, or from how much text, is not the same in each "
            "run. Compare rows of one length, and masks of one objective.validation_mask_probability."
        )
    lacking = [str(member.run.folder) for member in members if not _has(member, metric)]
    if lacking:
        known = sorted(set.intersection(*({*m.run.curves, *_reported(m)} for m in members)))
        known = [name for name in known if name.startswith(("val/", "train/loss", "eval/", "ema/"))]
        raise ConfigError(
            f"metric={metric} is missing in {lacking[0]}{f' and {len(lacking) - 1} more' if lacking[1:] else ''}. "
            + (f"All runs have: {', '.join(known)}." if known else "There is none that all runs have.")
        )
    return metric, warnings


def _has(member: Member, metric: str) -> bool:
    """Return whether a run has measured a metric, or has diverged or failed."""
    return member.run.latest(metric) is not None or _has_no_outcome(member, metric)


def _reported(member: Member) -> list[str]:
    return [name for name, value in (member.run.report.validation if member.run.report else {}).items() if value]


def _tokenizers_differ(members: Sequence[Member]) -> bool:
    """Return whether tokenizers differ by their fingerprints, or by settings where a run has no checkpoint left."""
    fingerprints = [member.identity.get("tokenizer_fingerprint") for member in members]
    settings = {
        repr([each for each in member.settings.items() if each[0].startswith("tokenizer.")]) for member in members
    }
    return len({*fingerprints} - {None}) > 1 or (None in fingerprints and len(settings) > 1)


def _texts(members: Sequence[Member], *, one_tokenizer: bool) -> set[str]:
    """Return what identifies the texts of the runs, that held out of them included, each text once.

    That is `data.validation_path`, or the text that it was held out of, by what all runs have left: its fingerprint,
    of tokens and so of one tokenizer alone, the sizes of its sources, or the settings.
    """
    fingerprints = [member.identity.get("data_fingerprint") if one_tokenizer else None for member in members]
    sizes: list[Any] = [member.text() for member in members]
    settings = [
        [value for key, value in each.settings.items() if key in ("data.kind", "data.path")] for each in members
    ]
    read = fingerprints if all(fingerprints) else sizes if all(sizes) else settings
    found = set()
    for member, text in zip(members, read, strict=True):
        names = ("validation_path", "validation_fraction", "max_validation_rows")
        held_out = [member.settings.get(f"data.{name}", "") for name in names]
        is_own = held_out[0] not in ("", "null")  # whatever is trained on
        found.add(repr(held_out) if is_own else repr((text, held_out)))
    return found


def _objective(member: Member) -> str:
    return member.settings.get("objective.kind", "-")


def _differing_tasks(groups: Sequence[Group], metric: str) -> list[str]:
    """Return the settings that say what a loss is of, with their values, where the groups differ."""
    if not metric.startswith(("val/", "train/", "ema/")):  # a speed, or the score of a task with its own text
        return []
    found = [_task(group.settings, metric) for group in groups]
    values = {name: list(dict.fromkeys(task.get(name, "-") for task in found)) for task in found for name in task}
    return [f"{name}={' and '.join(each)}" for name, each in values.items() if len(each) > 1]


def _task(settings: Mapping[str, str], metric: str) -> dict[str, str]:
    """Return the settings of row length and masks that a loss of this name depends on."""
    kind, names = settings.get("objective.kind"), ["model.context_length"]
    if kind == "masked" or (kind == "hybrid" and metric not in _PER_BYTE):  # those are of its causal rows
        names += [f"objective.{name}" for name in ("mask_token_prob", "random_token_prob", "unit", "masked_rows",
                                                   "bidirectional", "mask_probability")]  # fmt: skip
        names += ["objective.mean_span"] * (settings.get("objective.unit") == "span")
    task = {name: settings[name] for name in names if name in settings}
    in_validation = settings.get("objective.validation_mask_probability", "null")
    if "objective.mask_probability" in task and in_validation != "null" and not metric.startswith("train/"):
        task["objective.mask_probability"] = in_validation
    return task


def _final(member: Member, metric: str) -> float:
    value = member.run.latest(metric)
    assert value is not None
    return value


def _outcome(member: Member, metric: str, target: float, *, falls: bool) -> Outcome:
    run = member.run
    curves = Curves.read(run.folder, [metric, "progress/tokens", "speed/tokens_per_s"])
    newest = max((step for curve in curves.values.values() for step in curve), default=0)
    reported = run.report.steps if run.report else -1
    steps = max(newest, reported)  # a finished run that was resumed with more steps goes on after its report
    return Outcome(
        str(run.folder), member.seed, _final(member, metric), steps, curves.tokens_at(steps), curves.seconds_at(steps),
        curves.first(metric, target, falls=falls), newest <= reported,
    )  # fmt: skip


def _bounds(groups: Sequence[Group], metric: str) -> list[str]:
    """Return a line that says of a loss of diffusion models what it is; its own name says so only with _bound."""
    runs = [member.run for group in groups for member in group.members]
    if not all(f"{metric}_bound" in run.curves for run in runs):
        return []
    return [f"{metric} is an upper bound of -log p of the text in each run"]


def _unequal(groups: Sequence[GroupOutcome]) -> list[str]:
    """Return lines about what makes the final values of groups unequal: length, single seeds, ends that are missing."""
    lines = []
    tokens = {round(run.tokens) for group in groups for run in group.runs if run.tokens is not None}
    if len(tokens) > 1 and max(tokens) > 1.02 * min(tokens):
        lines.append(f"the runs differ in length, from {count(min(tokens))} to {count(max(tokens))} tokens")
    single = sum(len(group.runs) == 1 for group in groups)
    if single:
        lines.append(
            f"{single} of {len(groups)} groups have one run, and a single seed has no interval: train seed=0,1,2"
        )
    open_ends = [run.folder for group in groups for run in group.runs if not run.finished]
    if open_ends:
        others = f" and {len(open_ends) - 1} more" if open_ends[1:] else ""
        lines.append(f"not finished: {open_ends[0]}{others}; the newest values count")
    return lines
