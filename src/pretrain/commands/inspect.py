"""`pretrain inspect`: show the rows of a step of a run."""

from pretrain.config import cli
from pretrain.config.scripts import InspectConfig


def inspect(config: InspectConfig, overrides: list[str]) -> None:
    """Print the rows of a step of a run: their ids, documents and text."""
    from pretrain.errors import printable
    from pretrain.evaluation.inspect_step import rows_of_step
    from pretrain.interop.load import chosen_model

    folder = chosen_model(config.run, config.paths.logs_dir)
    print(printable(f"step {config.step} of {folder}", one_line=True))
    for row in rows_of_step(folder, config.step):
        print(printable(f"row {row.id}, sample {row.sample}{' (left out)' if row.excluded else ''}", one_line=True))
        for piece in row.pieces:
            at = f" from token {piece.offset}" if piece.offset else ""
            text = piece.marked[: config.characters] + ("..." if len(piece.marked) > config.characters else "")
            line = f"  document {piece.document} ({piece.name}){at}, {piece.tokens} tokens: {text}"
            print(printable(line, one_line=True))


def main(subcommand: str = "inspect") -> None:
    """Do what the command line says; `subcommand` is its first word, which chose this task."""
    cli.main("inspect", InspectConfig, inspect, subcommand=subcommand)
