"""Average the weights of checkpoints: `python src/average.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("average")
