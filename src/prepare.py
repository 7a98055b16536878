"""Write token stores: `python src/prepare.py --help`. Show a step's rows: `python src/prepare.py inspect step=1`."""

import sys
from pathlib import Path

from pretrain.config.cli import main
from pretrain.config.scripts import InspectConfig, PrepareConfig


def prepare(config: PrepareConfig, overrides: list[str]) -> None:
    """Prepare the tokenizer and the token stores of every source, and print their totals."""
    from pretrain.data.prepare import finish_stream
    from pretrain.data.prepare import prepare as prepare_corpus
    from pretrain.errors import printable

    prepared = prepare_corpus(config.data, config.tokenizer, Path(config.paths.cache_dir))
    finish_stream(prepared, config.data)
    fingerprint = prepared.tokenizer.fingerprint[:16]
    print(printable(f"tokenizer   {prepared.tokenizer.vocab_size:,} tokens, fingerprint {fingerprint}"))
    for source, corpus in prepared.corpora.items():
        if source:
            print(printable(f"source      {source}", one_line=True))
        print(printable(f"folder      {corpus.folder}", one_line=True))
        for name, store in (("train", corpus.train), ("validation", corpus.validation)):
            if store is None:
                print(printable(f"{name:<11} none"))
            else:
                store.verify()
                line = (
                    f"{name:<11} {store.n_documents:,} documents, {store.n_tokens:,} tokens, "
                    f"{store.text_bytes:,} bytes of text, "
                    f"{store.text_bytes / max(1, store.n_tokens):.2f} bytes a token; every file verified"
                )
                print(printable(line))


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


if __name__ == "__main__":
    if sys.argv[1:2] == ["inspect"]:
        main("inspect", InspectConfig, inspect, subcommand="inspect")
    else:
        main("prepare", PrepareConfig, prepare)
