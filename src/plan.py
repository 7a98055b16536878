"""Before the run: what it takes, without training: `python src/plan.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("plan")
