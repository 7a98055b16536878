"""What a run prints at its end, and leaves in its folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.inference.printing import printable


@dataclass(frozen=True)
class Report:
    """The figures of a finished run and the commands to type next."""

    folder: str
    steps: int
    tokens_seen: int
    parameters: int
    causal: bool
    validation: dict[str, float]
    tokens_per_s: float
    training_s: float
    sample: str

    def save(self) -> None:
        """Write report.json into the run folder."""
        (Path(self.folder) / "report.json").write_text(json.dumps(asdict(self), indent=1), encoding="utf8")

    def __str__(self) -> str:
        lines = ["", "Report", f"  run folder         {self.folder}"]
        lines += [f"  parameters         {self.parameters:,}"]
        lines += [f"  trained            {self.steps:,} steps, {self.tokens_seen:,} tokens"]
        lines += [f"  speed              {self.tokens_per_s:,.0f} tokens/s over {self.training_s:,.0f} s of training"]
        for key, label in (
            ("val/loss", "validation loss"),
            ("val/perplexity", "perplexity"),
            ("val/bits_per_byte", "bits per byte"),
            ("val/accuracy", "accuracy"),
        ):
            if key in self.validation:
                name = label if self.causal else {"perplexity": "masked perplexity", "accuracy": "masked accuracy"}.get(
                    label, label
                )  # fmt: skip
                lines.append(f"  {name:<18} {self.validation[key]:.4f}")
        lines += self._sources()
        lines += ["", "Sample", *(f"  {line}" for line in printable(self.sample).splitlines()), "", "Next"]
        prompt = 'prompt="The"' if self.causal else 'prompt="The quick [MASK] fox jumps over the lazy dog."'
        lines += [f"  python src/generate.py checkpoint={self.folder} {prompt}"]
        lines += [f"  tensorboard --logdir {Path(self.folder).parent}"]
        lines += [f"  python src/train.py resume={self.folder} trainer.max_steps={2 * self.steps}"]
        return "\n".join(lines)

    def _sources(self) -> list[str]:
        """Return a line for each source of a mixture: `validation` holds its figures as val/<source>/<figure>."""
        found: dict[str, list[str]] = {}
        for key, value in self.validation.items():
            _, *source, figure = key.split("/")
            if source:
                found.setdefault(source[0], []).append(f"{figure.replace('_', ' ')} {value:.4f}")
        width = max([16, *map(len, found)])
        return [f"    {source:<{width}} {', '.join(figures)}" for source, figures in found.items()]
