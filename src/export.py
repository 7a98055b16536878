"""Write a trained model as a Hugging Face folder: `python src/export.py --help`."""

from pretrain.command_line import main
from pretrain.script_config import ExportConfig


def export(config: ExportConfig, overrides: list[str]) -> None:
    """Write the folder, compare it with the model it was made of, and say how to load it."""
    from pretrain.checkpoint import latest_run
    from pretrain.errors import printable
    from pretrain.export import export_model

    path = latest_run(config.paths.logs_dir) if config.checkpoint == "auto" else config.checkpoint
    print(printable(export_model(config, path)))


if __name__ == "__main__":
    main("export", ExportConfig, export)
