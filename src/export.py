"""Write a trained model as a Hugging Face folder: `python src/export.py --help`."""

from pretrain.config.cli import main
from pretrain.config.scripts import ExportConfig


def export(config: ExportConfig, overrides: list[str]) -> None:
    """Write the folder, compare it with the model it was made of, and say how to load it."""
    from pretrain.errors import printable
    from pretrain.interop.export import export_model
    from pretrain.interop.load import chosen_model

    path = chosen_model(config.checkpoint, config.paths.logs_dir)
    print(printable(export_model(config, path)))


if __name__ == "__main__":
    main("export", ExportConfig, export)
