"""Take documents out of a curated corpus and say which runs read them: `python src/forget.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("forget")
