"""Train a ladder of sizes and lengths and fit a scaling law to it: `python src/scale.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("scale")
