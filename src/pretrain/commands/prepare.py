"""`pretrain prepare`: write the tokenizer and the token stores."""

from pathlib import Path

from pretrain.config import cli
from pretrain.config.scripts import PrepareConfig


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


def main(subcommand: str = "") -> None:
    """Do what the command line says; `subcommand` is its first word where that chose this task."""
    cli.main("prepare", PrepareConfig, prepare, subcommand=subcommand)
