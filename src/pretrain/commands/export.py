"""`pretrain export`: write a trained model as a Hugging Face folder."""

from pretrain.config import cli
from pretrain.config.scripts import ExportConfig


def export(config: ExportConfig, overrides: list[str]) -> None:
    """Write the folder, compare it with the model it was made of, and say how to load it."""
    from pretrain.errors import printable
    from pretrain.interop.export import export_model
    from pretrain.interop.load import chosen_model

    path = chosen_model(config.checkpoint, config.paths.logs_dir)
    print(printable(export_model(config, path)))


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("export", ExportConfig, export, subcommand=subcommand)
