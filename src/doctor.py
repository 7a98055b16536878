"""Prove on this machine, at small size, what a training run relies on: `python src/doctor.py --help`."""

from pretrain.commands.doctor import main

if __name__ == "__main__":
    main()
