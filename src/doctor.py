"""Check on this machine, with small runs, that a training run keeps its promises: `python src/doctor.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("doctor")
