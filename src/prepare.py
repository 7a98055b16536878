"""Write token stores: `python src/prepare.py --help`. Show a step's rows: `python src/prepare.py inspect step=1`."""

import sys

from pretrain.commands.tasks import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["inspect"]:
        main("inspect", typed=True)
    else:
        main("prepare")
