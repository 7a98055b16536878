"""Write report.html of a run, of a sweep, or of a folder of runs: `python src/report.py --help`."""

from pretrain.commands.tasks import main

if __name__ == "__main__":
    main("report")
