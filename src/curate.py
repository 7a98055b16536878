"""Make a corpus of raw text: `python src/curate.py --help`. Check one: `python src/curate.py verify path=corpora`.

Each process of it imports this script, so only the first runs the command.
"""

import sys

from pretrain.commands.tasks import main

if __name__ == "__main__":
    if sys.argv[1:2] in (["verify"], ["forget"]):
        main(sys.argv[1], typed=True)
    else:
        main("curate")
