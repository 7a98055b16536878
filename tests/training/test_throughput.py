"""Time of a run by cause, on a fake clock."""

import pytest

from pretrain.training.throughput import Throughput


def test_every_second_is_a_steps_or_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Throughput()
    now[0] += 5  # start
    watch.resume()
    now[0] += 10
    watch.add(1000)
    assert watch.training_s == 10
    assert watch.tokens_per_s() == 100
    with watch.paused("checkpoints"):
        now[0] += 2
    with watch.paused("checkpoints"):
        now[0] += 4
    watch.pause("validation")
    now[0] += 3
    watch.resume()
    now[0] += 10
    watch.add(500)
    assert watch.tokens_per_s() == 50
    assert watch.goodput() == 20 / 34
    watch.pause("the end")
    now[0] += 6
    assert watch.wall_s() == 40
    assert watch.training_s == 20
    assert watch.goodput() == 0.5
    assert watch.mean_tokens_per_s() == 75
    assert watch.other_s == {"checkpoints": 6, "validation": 3}
    assert watch.checkpoint_s() == 3


def test_steps_that_are_done_again_count_neither_as_time_nor_as_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Throughput()
    watch.resume()
    since = watch.position()
    now[0] += 10
    watch.add(1000)
    assert watch.tokens_per_s() == 100
    watch.pause("rewinds")
    watch.lose(since, 0.5, "rewinds")
    watch.resume()
    assert watch.mean_tokens_per_s() == 100  # 200 if the tokens stayed
    now[0] += 5
    watch.add(500)
    assert (watch.tokens_per_s(), watch.mean_tokens_per_s()) == (100, 100)
    assert (watch.training_s, watch.other_s["rewinds"]) == (10, 5)
