"""A killed preparation leaves nothing that looks like a store; a second one makes the same store."""

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked_process
import pytest

ROOT = Path(__file__).parents[2]
KILLS = 10


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "done.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def whole(folder: Path) -> dict[str, str]:
    """Return the files of what was committed, without what a kill left half done."""
    return {name: value for name, value in files(folder).items() if ".tmp" not in name}


@pytest.mark.long
@pytest.mark.fault("F15")
def test_killed_ten_times_it_makes_the_same_store(tmp_path: Path, corpus: Path) -> None:
    def command(name: str) -> list[str]:
        words = ["data=text_files", f"data.path={corpus}", "tokenizer.vocab_size=300"]
        return [sys.executable, str(ROOT / "src" / "prepare.py"), f"paths.cache_dir={tmp_path / name}", *words]

    forked_process.run(command("whole"), check=True, capture_output=True)  # may start the process that forks, too
    started = time.monotonic()
    forked_process.run(command("timed"), check=True, capture_output=True)
    takes_s = time.monotonic() - started
    draw, hits, tries = random.Random(0), 0, 0
    while hits < KILLS:
        tries += 1
        assert tries < 5 * KILLS
        process = forked_process.popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.2, 0.9) * takes_s)
        process.kill()
        is_killed = process.wait() == -9
        hits += is_killed
        takes_s *= 1.0 if is_killed else 0.8  # too late: the machine was busier when it was timed
        stores = [path for path in (tmp_path / "killed").glob("stores/*") if ".tmp" not in path.name]
        assert all((store / "done.json").exists() for store in stores)
        if stores:  # too late, or just in time: it was done
            assert whole(tmp_path / "killed") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    forked_process.run(command("killed"), check=True, capture_output=True)
    assert whole(tmp_path / "killed") == files(tmp_path / "whole")
