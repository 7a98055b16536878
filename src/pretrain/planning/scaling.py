"""Whether a run's plan makes sense: how often the data is repeated, and whether there is enough of it."""

# up to about four epochs, repeated data is worth almost as much as new
# (Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264)
MAX_USEFUL_EPOCHS = 4.0


def data_warnings(parameters: int, tokens_in_data: int, tokens_planned: int) -> list[str]:
    """Return a sentence with the figures for each doubt about the plan; none for a sound one."""
    warnings = []
    epochs = tokens_planned / max(1, tokens_in_data)
    if epochs > MAX_USEFUL_EPOCHS:
        warnings.append(
            f"the run reads {tokens_planned:,} tokens, the data has {tokens_in_data:,}: {epochs:.1f} epochs. "
            f"Beyond about {MAX_USEFUL_EPOCHS:.0f} a repeated token teaches little (Muennighoff et al. 2023)."
        )
    if parameters > tokens_in_data:
        warnings.append(
            f"the model has {parameters:,} parameters, the data {tokens_in_data:,} tokens: it can learn them by heart. "
            "Watch val/loss, take more data, or a smaller model."
        )
    return warnings
