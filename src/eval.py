"""Score a trained model on documents or a task: `python src/eval.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("eval")
