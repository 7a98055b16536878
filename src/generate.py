"""Complete, fill masks of, or classify a prompt with a trained model: `python src/generate.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("generate")
