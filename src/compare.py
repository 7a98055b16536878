"""Compare runs, or groups of runs with different seeds: `python src/compare.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("compare")
