"""Runs to compare, grouped: those whose settings differ only in the seed are repetitions of one experiment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import read_manifest, step_folders
from pretrain.config.serialize import flat, from_dict, to_dict
from pretrain.errors import CheckpointError, ConfigError, shown
from pretrain.launch.run_folder import CHECKPOINTS, CONFIG, REPORT, TABLE, read_rows
from pretrain.reports.run import RunFiles, read_run
from pretrain.reports.sweep import MAX_RUNS, SWEEP_RECORD, read_sweep

# what says nothing about how a run trains: where it lies, and what it writes besides
_ASIDE = (
    "paths.", "name", "notes", "tags", "resume", "allow_change", "plugins", "logging.", "loggers.", "callbacks.",
    "sample.", "scores.", "checkpoint.", "trainer.enable_progress_bar", "trainer.log_every_n_steps",
    "trainer.timeout_s", "data.prefetch",
)  # fmt: skip
_OF_THE_MACHINE = ("commit", "pretrain", "device", "processes", "threads", "number format", "torch")


@dataclass(frozen=True)
class Reached:
    """Where a run first met a target."""

    step: int
    tokens: float | None
    seconds: float | None  # in steps


@dataclass
class Curves:
    """The figures of a run by step, from its metrics.csv, in the order of steps."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, names: Sequence[str]) -> Curves:
        """Return the figures of these names; a step that was written twice has its newest value."""
        found = cls()
        for row in read_rows(folder / TABLE):
            value = float(row["value"])
            if row["name"] in names and math.isfinite(value):
                found.values.setdefault(row["name"], {})[int(row["step"])] = value
        found.values = {name: dict(sorted(curve.items())) for name, curve in found.values.items()}
        return found

    def tokens_at(self, step: int) -> float | None:
        """Return the tokens read up to a step, between logged steps in proportion; None if none were logged."""
        return _between({0: 0.0} | self.values["progress/tokens"], step) if "progress/tokens" in self.values else None

    def seconds_at(self, step: int) -> float | None:
        """Return the seconds in steps up to a step: tokens over the speed of each logged stretch; None if unknown."""
        tokens, speed = self.values.get("progress/tokens", {}), self.values.get("speed/tokens_per_s", {})
        spent, seconds, before = {0: 0.0}, 0.0, 0.0
        for at, read in tokens.items():
            if speed.get(at, 0.0) > 0:
                seconds += max(0.0, read - before) / speed[at]
                spent[at] = seconds
            before = read
        return _between(spent, step) if len(spent) > 1 else None

    def first(self, metric: str, target: float, *, falls: bool) -> Reached | None:
        """Return the first step whose value of a metric is as good as the target; None if none is."""
        for step, value in self.values.get(metric, {}).items():
            if (value <= target) if falls else (value >= target):
                return Reached(step, self.tokens_at(step), self.seconds_at(step))
        return None


def _between(points: dict[int, float], step: int) -> float:
    """Return the value at a step by linear interpolation; after the last point it grows in proportion to the step."""
    steps = sorted(points)
    if step in points:
        return points[step]
    above = next((each for each in steps if each > step), None)
    if above is None:
        return points[steps[-1]] * step / steps[-1]
    below = max(each for each in steps if each < step)
    return points[below] + (points[above] - points[below]) * (step - below) / (above - below)


@dataclass
class Member:
    """One run of a comparison."""

    run: RunFiles
    settings: dict[str, str]  # by full name, as typed
    origin: str  # the folder of runs that it came with; empty for a run that was named itself
    identity: dict[str, Any]  # fingerprints of tokenizer and data from its newest checkpoint; {} without one

    @property
    def seed(self) -> str:
        """Its seed, as typed."""
        return self.settings.get("seed", "-")

    def decisive(self) -> dict[str, str]:
        """Return the settings that decide how it trains, but for the seed."""
        return {key: value for key, value in self.settings.items() if key != "seed" and not key.startswith(_ASIDE)}

    def environment(self) -> dict[str, str]:
        """Return code, device and libraries of its newest start, as far as they are known."""
        known = dict(self.run.start.environment) if self.run.start else {}
        if "commit of pretrain" in known:  # of the code, where the working folder is of another repository
            known["commit"] = known["commit of pretrain"]
        return {name: known[name] for name in _OF_THE_MACHINE if name in known}

    def text(self) -> tuple[Any, ...]:
        """Return what identifies its text apart from a tokenizer: bytes, documents and kind of each source."""
        sources = self.run.history.sources if self.run.history else []
        return tuple((each.name, each.documents, each.text_bytes) for each in sources)


@dataclass
class Group:
    """Runs of one experiment with different seeds."""

    name: str
    members: list[Member]

    @property
    def settings(self) -> dict[str, str]:
        """The settings that decide how its runs train."""
        return self.members[0].decisive()


def read_groups(paths: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Return the groups of these runs and folders of runs, and lines about what was left out.

    Runs of a folder, and runs that are named themselves, are one group if their settings differ only in the seed. Runs
    with equal seeds are not: the same was run by another program or machine. Raises CheckpointError for a folder
    without runs.
    """
    members, left_out = list[Member](), list[str]()
    for path in paths:
        for found in _runs_below(Path(path).expanduser()):
            if isinstance(found, str):
                left_out.append(found)
            else:
                members.append(found)
    groups: list[Group] = []
    for member in _distinct(members):
        fits = (group for group in groups if _belongs(member, group))
        group = next(fits, None)
        if group is None:
            groups.append(Group("", [member]))
        else:
            group.members.append(member)
    _name(groups)
    return groups, left_out


def _distinct(members: Sequence[Member]) -> list[Member]:
    """Return the runs without those that were named before."""
    return list({member.run.folder.resolve(): member for member in reversed(members)}.values())[::-1]


def _belongs(member: Member, group: Group) -> bool:
    first = group.members[0]
    if member.origin != first.origin or member.decisive() != first.decisive():
        return False
    return member.seed not in {each.seed for each in group.members}


def _runs_below(path: Path) -> Iterator[Member | str]:
    """Yield the run in a folder, or those in its folders; for one that cannot be read, a line that says so."""
    if any(os.path.lexists(path / name) for name in (CONFIG, REPORT, TABLE)):
        yield _member(read_run(path), "")
        return
    if not (os.path.lexists(path / SWEEP_RECORD) or (path.is_dir() and any(path.glob(f"*/{CONFIG}")))):
        raise CheckpointError(
            f"runs={path} holds no run: neither it nor a folder in it has a {CONFIG}. Try runs=[logs/a,logs/b]."
        )
    sweep = read_sweep(path)
    named = {trial.job.folder for trial in sweep.trials}
    earlier = sum(each.parent.name not in named for each in path.glob(f"*/{CONFIG}"))
    if sweep.left_out:
        yield f"{path} holds more than {MAX_RUNS} runs; the rest is left out"
    elif earlier:
        yield f"{path} holds runs beside those of its newest sweep; left out: {earlier}. Name their folders to add them"
    for trial in sweep.trials:
        if trial.run is None:
            yield f"{path / trial.job.folder} is left out: it holds no run that can be read"
        else:
            yield _member(trial.run, str(path))


def _member(run: RunFiles, origin: str) -> Member:
    settings = _settings(run)
    identity: dict[str, Any] = {}
    folders = step_folders(run.folder / CHECKPOINTS)
    if folders:
        try:
            progress = read_manifest(folders[-1])["progress"]
            names = ("tokenizer_fingerprint", "data_fingerprint")
            identity = {name: progress[name] for name in names if isinstance(progress.get(name), str)}
        except (OSError, ValueError):  # damaged: the settings alone tell what it read
            identity = {}
    return Member(run, settings, origin, identity)


def _settings(run: RunFiles) -> dict[str, str]:
    """Return the settings of a run by full name, those of the run that it starts from among them.

    The path of that run is replaced by the name of its checkpoint and by `branch.<setting>` or `init_from.<setting>`:
    branches of runs that differ in the seed alone do so too.
    """
    settings = {key: shown(value) for key, value in flat(_with_defaults(run.settings))}
    for key in ("branch", "init_from"):
        base, checkpoint = _base(run.settings.get(key))
        if base is None or base.resolve() == run.folder.resolve():
            continue
        try:
            theirs = Member(read_run(base), {}, "", {})
        except CheckpointError:  # the path itself tells them apart
            continue
        theirs.settings = _settings(theirs.run)
        settings[key] = checkpoint
        settings |= {f"{key}.{name}": value for name, value in theirs.decisive().items()}
    return settings


def _base(path: Any) -> tuple[Path | None, str]:
    """Return the folder of the run of which this is a checkpoint, None if it is none, and the checkpoint's name."""
    if not isinstance(path, str) or not path:
        return None, ""
    folders = [Path(path).expanduser(), *Path(path).expanduser().parents][:3]  # the run, its checkpoints, one of them
    base = next((folder for folder in folders if os.path.lexists(folder / CONFIG)), None)
    return base, "the newest" if base is None or folders[0] in (base, base / CHECKPOINTS) else folders[0].name


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as a resume reads them: those newer than the run have their defaults, and names are current.

    Those that this version cannot read, such as of a plug-in that is not loaded, are returned as they are.
    """
    try:
        return to_dict(from_dict(settings))
    except ConfigError:
        return settings


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the settings that differ between groups, each with its value in every group; "-" where it has none."""
    found = [group.settings for group in groups]
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    rows = {key: [settings.get(key, "-") for settings in found] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def differing_environments(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return code, device and libraries that differ between groups, each with its values in every group."""
    found = [[member.environment() for member in group.members] for group in groups]
    rows = {
        name: [", ".join(sorted({each[name] for each in runs if name in each})) or "-" for runs in found]
        for name in _OF_THE_MACHINE
    }
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _name(groups: list[Group]) -> None:
    """Name every group by its settings that differ, where those are few and tell it from the others; else by folder."""
    rows = {key: values for key, values in differing(groups).items() if "-" not in values}
    for position, group in enumerate(groups):
        values = {key: values[position] for key, values in rows.items()}
        short = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
        first = group.members[0]
        group.name = short if 0 < len(values) <= 3 and len(short) <= 60 else first.origin or str(first.run.folder)
    for name in dict.fromkeys(group.name for group in groups):
        alike = [group for group in groups if group.name == name]
        if len(alike) > 1:
            for group, folder in zip(alike, _folder_names(alike), strict=True):
                group.name = f"{name} ({folder})"


def _folder_names(groups: Sequence[Group]) -> list[str]:
    """Return the last name of each group's folder, or of its first run's; their numbers where those are alike."""
    firsts = [group.members[0] for group in groups]
    for names in ([Path(each.origin).name for each in firsts], [each.run.folder.name for each in firsts]):
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(number) for number in range(1, len(groups) + 1)]


def as_json(value: Any) -> str:
    """Return plain data as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
