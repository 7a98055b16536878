"""Write token stores: `python src/prepare.py --help`. Show a step's rows: `python src/prepare.py inspect step=1`."""

import sys

from pretrain.commands import inspect, prepare

if __name__ == "__main__":
    if sys.argv[1:2] == ["inspect"]:
        inspect.main()
    else:
        prepare.main()
