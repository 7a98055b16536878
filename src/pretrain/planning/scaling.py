"""Whether a run's plan makes sense: how often the data is repeated, and whether there is enough of it."""

# up to about four epochs, repeated data is worth almost as much as new
# (Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264)
MAX_USEFUL_EPOCHS = 4.0
_REPEATED = f"Beyond about {MAX_USEFUL_EPOCHS:.0f} a repeated token teaches little (Muennighoff et al. 2023)."


def data_warnings(parameters: int, tokens_in_data: int, tokens_planned: int) -> list[str]:
    """Return a sentence with the figures for each doubt about the plan; none for a sound one."""
    warnings = []
    epochs = tokens_planned / max(1, tokens_in_data)
    if epochs > MAX_USEFUL_EPOCHS:
        warnings.append(
            f"the run reads {tokens_planned:,} tokens, the data has {tokens_in_data:,}: {epochs:.1f} epochs. "
            f"{_REPEATED}"
        )
    if parameters > tokens_in_data:
        warnings.append(
            f"the model has {parameters:,} parameters, the data {tokens_in_data:,} tokens: it can learn them by heart. "
            "Watch val/loss, take more data, or a smaller model."
        )
    return warnings


def source_warnings(epochs: dict[str, float], tokens_in_data: dict[str, int]) -> list[str]:
    """Return a sentence for each source of a mixture that the plan repeats too often, by how often it is read."""
    return [
        f"source {name} would be read {times:.1f} epochs: it has {tokens_in_data[name]:,} tokens. {_REPEATED}"
        for name, times in epochs.items()
        if times > MAX_USEFUL_EPOCHS
    ]
