"""Progress lines of a run without a terminal."""

import pytest

from pretrain.training.callbacks.progress import PacedLog


def test_after_a_hundred_lines_a_log_prints_one_in_thirty_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    log = PacedLog(clock=lambda: now)
    for step in range(1, 111):
        log.write(f"step {step}")
    assert capsys.readouterr().out.splitlines() == [f"step {step}" for step in range(1, 101)]
    now += 29.9
    log.write("step 111")
    log.write("step 111: validation loss 3.1", keep=True)
    log.write("step 112: validation loss 3.0", keep=True)
    assert capsys.readouterr().out == ""
    now += 0.2
    log.write("step 113")
    log.write("step 114")
    assert capsys.readouterr().out == "step 113  (step 112: validation loss 3.0)\n"
    now += 31.0
    log.write("step 115: validation loss 2.9", keep=True)
    log.write("step 116")
    log.write("step 117", last=True)
    assert capsys.readouterr().out == "step 115: validation loss 2.9\nstep 117\n"
