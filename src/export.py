"""Write a trained model as a Hugging Face folder: `python src/export.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("export")
