"""Say why documents of a curated corpus were removed: `python src/explain.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("explain")
