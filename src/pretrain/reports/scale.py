"""What a ladder of runs says: the fitted law, the held-out run, the recommended one; for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from pretrain.planning.scaling import MAX_USEFUL_EPOCHS
from pretrain.planning.scaling_fit import Fit, Range
from pretrain.planning.units import count, percent
from pretrain.reports.chart import COLORS, Line, Look
from pretrain.reports.page import Page, card, code, escaped, grid, number, table, verbatim
from pretrain.reports.run import in_both_widths
from pretrain.reports.series import Scatter

_FAR = 30.0  # times the largest run of a ladder, beyond which a law is a guess
_OFF = 2.0  # over what was asked for, from where a recommendation is another one
_WIDE = 10.0  # highest over lowest value of an interval that says little
_STEEP = 1.0  # exponent far above the published ones: Hoffmann et al. 2022 found 0.34 and 0.28
_PROFILES, _POINTS = 4, 25  # budgets that are drawn, and sizes of each


@dataclass(frozen=True)
class LadderRun:
    """A run of the ladder."""

    size: str
    steps: int
    parameters: int
    tokens: float
    loss: float  # nats per target
    folder: str

    @property
    def flops(self) -> float:
        """Training operations, 6 N D."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True)
class HeldOut:
    """A run that was predicted before it was trained."""

    run: LadderRun
    predicted: Range
    written_at: str  # UTC
    is_late: bool = False  # whether the run had started by then, in an earlier ladder

    @property
    def is_inside(self) -> bool:
        """Whether its loss lies in the predicted interval."""
        return self.predicted.low <= self.run.loss <= self.predicted.high


@dataclass(frozen=True)
class Recommended:
    """The run that the law recommends for a budget."""

    budget: float  # FLOPs
    size: str
    parameters: int
    tokens: float
    loss: Range
    optimal_parameters: Range
    times_largest: float  # budget over that of the largest run of the ladder
    commands: list[str]


@dataclass(frozen=True)
class Ladder:
    """A ladder of runs and what it says."""

    objective: str
    runs: list[LadderRun]
    fit: Fit
    held_out: HeldOut | None
    recommended: Recommended

    def as_data(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        held_out = None if self.held_out is None else asdict(self.held_out) | {"inside": self.held_out.is_inside}
        return {
            "objective": self.objective,
            "confidence": self.fit.confidence,
            "constants": {name: asdict(value) for name, value in self.fit.constants().items()},
            "runs": [
                asdict(run) | {"flops": run.flops, "fitted": self.fit.law.loss(run.parameters, run.tokens)}
                for run in self.runs
            ],
            "held_out": held_out,
            "recommended": asdict(self.recommended),
        }


def notes(ladder: Ladder) -> list[str]:
    """Return what to know before the law is trusted."""
    found = ladder.recommended
    lines = []
    if found.times_largest > _FAR:
        lines.append(
            f"the budget is {found.times_largest:,.0f} times the largest run of the ladder: beyond {_FAR:.0f} times, "
            "train a larger ladder"
        )
    if (cost := 6 * found.parameters * found.tokens) > _OFF * found.budget:
        lines.append(
            f"the recommended run takes {cost:.3g} operations, more than the budget of {found.budget:.3g}: one step of "
            "the smallest size is the least. Try a larger ladder.budget"
        )
    if _OFF * found.parameters < (best := found.optimal_parameters.value):
        lines.append(f"the law asks for {best:.3g} parameters, and the recommended size is the largest that is tried")
    if found.optimal_parameters.high > _WIDE * found.optimal_parameters.low:
        lines.append("the best size is hardly known: its interval is wide. Add sizes or lengths to the ladder")
    lines += _no_optimum(found)
    constants = ladder.fit.constants()
    if constants["alpha"].low == constants["alpha"].high:
        lines.append("the runs are too few to fit the exponents: those of Hoffmann et al. 2022 are taken")
    lines += [*_steep_exponents(constants), *_worse_for_being_longer(ladder.runs)]
    if ladder.held_out is not None and not ladder.held_out.is_inside:
        lines.append("the held-out run lies outside its interval: the law does not hold there")
    if ladder.held_out is not None and ladder.held_out.is_late:
        lines.append("the held-out run had started before this prediction: it checks less than a new one would")
    if ladder.held_out is None:
        lines.append("no run was held out to check the law: ladder.held_out=<layers>x<width>")
    if ladder.objective == "masked":
        lines.append("the loss is that of masked tokens, and the tokens are those read")
    lines.append(
        f"text that is read more than about {MAX_USEFUL_EPOCHS:.0f} times is worth less than the law says "
        "(Muennighoff et al. 2023)"
    )
    return lines


def _no_optimum(found: Recommended) -> list[str]:
    """Return a line where the law puts all operations into parameters, or all into tokens."""
    parameters, most = found.optimal_parameters.value, found.budget / 6
    if 1.0 < parameters < 0.999 * most:  # else it ends there: `ScalingLaw.optimum`
        return []
    cause = "sizes" if parameters <= 1.0 else "lengths"
    return [
        f"the law sees no gain in other {cause}, so that it has no best size, and the recommended one is a guess. "
        "Try longer runs or a wider ladder"
    ]


def _steep_exponents(constants: dict[str, Range]) -> list[str]:
    """Return a line for each exponent that is far above those of published laws."""
    causes = {
        "alpha": "the smallest models may hardly have begun to learn, or the sizes lie too close together",
        "beta": "the shortest runs may hardly have begun to learn, or the lengths lie too close together",
    }
    return [
        f"{name} is {constants[name].value:.2g}, and published laws have about 0.3: {cause}. Try longer runs or a "
        "wider ladder"
        for name, cause in causes.items()
        if constants[name].value > _STEEP
    ]


def _worse_for_being_longer(runs: Iterable[LadderRun]) -> list[str]:
    """Return a line for each run that ended at a higher loss than the next shorter one of its size."""
    in_order = sorted(runs, key=lambda run: (run.parameters, run.tokens))
    return [
        f"{longer.size} ended at {longer.loss:.3f} after {count(longer.tokens)} tokens, and at {shorter.loss:.3f} "
        f"after {count(shorter.tokens)}: a run that stood still or diverged spoils the fit. Look at its curve in "
        f"{longer.folder}; try another seed, a lower rate or longer runs"
        for shorter, longer in pairwise(in_order)
        if shorter.parameters == longer.parameters and shorter.tokens < longer.tokens and shorter.loss < longer.loss
    ]


def in_words(ladder: Ladder) -> str:
    """Return what the command prints."""
    fit, found = ladder.fit, ladder.recommended
    lines = ["", "Runs", *(
        f"  {run.size:<8} {count(run.parameters):>9} parameters {count(run.tokens):>9} tokens   loss {run.loss:.4f}, "
        f"fitted {fit.law.loss(run.parameters, run.tokens):.4f}" for run in ladder.runs
    )]  # fmt: skip
    lines += ["", f"L(N, D) = E + A / N^alpha + B / D^beta, with intervals of {percent(fit.confidence)}"]
    lines += [f"  {name:<6}{_range(value)}" for name, value in fit.constants().items()]
    if ladder.held_out is not None:
        lines += ["", _about_held_out(ladder.held_out)]
    lines += ["", _about_recommended(found), *(f"  {line}" for line in found.commands), ""]
    return "\n".join([*lines, *(f"note: {line}" for line in notes(ladder))])


def _range(value: Range) -> str:
    return f"{value.value:.4g} ({value.low:.4g} to {value.high:.4g})"


def _about_held_out(held_out: HeldOut) -> str:
    run, predicted = held_out.run, held_out.predicted
    verdict = "inside" if held_out.is_inside else "OUTSIDE"
    return (
        f"Held out: {run.size}, {count(run.tokens)} tokens: loss {run.loss:.4f}, {verdict} of {predicted.low:.4f} to "
        f"{predicted.high:.4f}, predicted at {held_out.written_at} UTC ({predicted.value:.4f})"
    )


def _about_recommended(found: Recommended) -> str:
    optimal = found.optimal_parameters
    return (
        f"For {found.budget:.3g} FLOPs: {found.size}, {count(found.parameters)} parameters (optimal "
        f"{count(optimal.value)}, {count(optimal.low)} to {count(optimal.high)}), {count(found.tokens)} tokens; "
        f"expected loss {found.loss.value:.4f} ({found.loss.low:.4f} to {found.loss.high:.4f})"
    )


def scale_page(ladder: Ladder, name: str) -> str:
    """Return the page of a ladder as HTML."""
    page = Page(f"Scaling law of {name}", f"{ladder.objective}, {len(ladder.runs)} runs", tiles=_tiles(ladder))
    if ladder.held_out is not None:
        inside = ladder.held_out.is_inside
        page.state = ("prediction held" if inside else "prediction failed", inside)
    look = Look("Loss by training operations, nats per target", x="FLOPs (6 N D)", log_x=True, log_y=False)
    page.add(
        "Loss by compute",
        card(in_both_widths(list(_by_compute(ladder)), look, 400)),
        note="Dots are runs, one line for each size; the gray line is the lowest loss that the law allows.",
    )
    look = Look("Loss by size at fixed operations, nats per target", x="parameters", log_x=True, log_y=False)
    page.add(
        "The best size for a budget",
        card(in_both_widths(list(_profiles(ladder)), look, 360)),
        note="As the law says. A line has one budget in FLOPs: a small model for long, or a large one briefly.",
    )
    found = ladder.recommended
    page.add("Recommended", f"<p>{escaped(_about_recommended(found))}</p>", *map(verbatim, found.commands))
    page.add(
        "The law",
        _law(ladder),
        note="L(N, D) = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022, approach 3; residuals resampled.",
    )
    page.add("Runs", card(_runs(ladder)))
    return page.render()


def _tiles(ladder: Ladder) -> list[tuple[str, str]]:
    tiles, found = [], ladder.recommended
    if ladder.held_out is not None:
        predicted = ladder.held_out.predicted
        tiles.append((f"{ladder.held_out.run.loss:.4f}", "loss of the held-out run"))
        tiles.append(
            (
                f"{predicted.low:.4f} to {predicted.high:.4f}",
                "predicted after its start" if ladder.held_out.is_late else "predicted before it started",
            )
        )
    tiles.append((found.size, f"layers x width for {found.budget:.3g} FLOPs"))
    return [*tiles, (count(found.tokens), "tokens of that run"), (f"{found.loss.value:.4f}", "its expected loss")]


def _law(ladder: Ladder) -> str:
    """Return the constants with their intervals, and how far to trust them."""
    rows = [
        [name, number(f"{value.value:.4g}"), number(f"{value.low:.4g} to {value.high:.4g}")]
        for name, value in ladder.fit.constants().items()
    ]
    constants = table(["constant", "value", f"interval of {percent(ladder.fit.confidence)}"], rows)
    lines = [_about_held_out(ladder.held_out)] if ladder.held_out else []
    checks = "".join(f"<p>{escaped(line)}</p>" for line in [*lines, *notes(ladder)])
    return grid([card(constants, heading="Constants"), card(checks, heading="How far to trust it")], "two")


def _runs(ladder: Ladder) -> str:
    law = ladder.fit.law
    rows = [
        [
            run.size, number(count(run.parameters)), number(count(run.tokens)), number(f"{run.flops:.3g}"),
            number(f"{run.loss:.4f}"), number(f"{law.loss(run.parameters, run.tokens):.4f}"), code(run.folder),
        ]
        for run in [*ladder.runs, *([ladder.held_out.run] if ladder.held_out else [])]
    ]  # fmt: skip
    return table(["size", "parameters", "tokens", "FLOPs", "loss", "fitted", "run"], rows, stacks=True)


def _by_compute(ladder: Ladder) -> Iterable[Line]:
    """Yield the runs of each size, the held-out one, and the frontier of the law."""
    sizes = list(dict.fromkeys(run.size for run in ladder.runs))
    for position, size in enumerate(sizes):
        points = sorted((run.flops, run.loss) for run in ladder.runs if run.size == size)
        yield Line(size, Scatter.of(points), dots=True, quiet=position >= COLORS - 1)
    runs = [run.flops for run in ladder.runs]
    if ladder.held_out is not None:
        runs.append(ladder.held_out.run.flops)
        yield Line("held out", Scatter.of([(ladder.held_out.run.flops, ladder.held_out.run.loss)]), dots=True)
    budgets = _between(min(runs), max(max(runs), min(ladder.recommended.budget, _FAR * max(runs))))
    yield Line("the law", Scatter.of((flops, ladder.fit.law.optimum(flops).loss) for flops in budgets), quiet=True)


def _profiles(ladder: Ladder) -> Iterable[Line]:
    """Yield the predicted loss by size of a few budgets."""
    runs = [run.flops for run in ladder.runs]
    for flops in _between(min(runs), max(*runs, min(ladder.recommended.budget, _FAR * max(runs))), _PROFILES):
        best = ladder.fit.law.optimum(flops).parameters
        sizes = _between(best / 12, best * 12)
        points = ((size, ladder.fit.law.loss(size, flops / (6 * size))) for size in sizes)
        yield Line(f"{flops:.2g}", Scatter.of(points))


def _between(low: float, high: float, number_of: int = _POINTS) -> list[float]:
    """Return numbers from low to high in equal ratios."""
    return [low * (high / low) ** (position / (number_of - 1)) for position in range(number_of)]
