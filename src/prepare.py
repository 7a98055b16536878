"""Text to a token store, without training: `python src/prepare.py --help`."""

from pathlib import Path

from pretrain.command_line import main
from pretrain.config import PrepareConfig


def prepare(config: PrepareConfig, overrides: list[str]) -> None:
    """Make the tokenizer and the token stores of every source, or find them in the cache, and say what they hold."""
    from pretrain.data.prepare import finish_stream
    from pretrain.data.prepare import prepare as prepare_corpus

    prepared = prepare_corpus(config.data, config.tokenizer, Path(config.paths.cache_dir))
    finish_stream(prepared, config.data)
    print(f"tokenizer   {prepared.tokenizer.vocab_size:,} tokens, fingerprint {prepared.tokenizer.fingerprint[:16]}")
    for source, corpus in prepared.corpora.items():
        if source:
            print(f"source      {source}")
        print(f"folder      {corpus.folder}")
        for name, store in (("train", corpus.train), ("validation", corpus.validation)):
            if store is not None:
                store.verify()
                print(
                    f"{name:<11} {store.n_documents:,} documents, {store.n_tokens:,} tokens, "
                    f"{store.text_bytes:,} bytes of text, "
                    f"{store.text_bytes / max(1, store.n_tokens):.2f} bytes a token; every file verified"
                )


if __name__ == "__main__":
    main("prepare", PrepareConfig, prepare)
