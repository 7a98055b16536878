"""What a run has written of its steps is there still when a resume is killed while it drops what will be done again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.training.callbacks.ledger import Ledger
from pretrain.training.loggers import LongCSVLogger


@pytest.mark.parametrize("kind", ["ledger", "figures"])
def test_a_resume_that_is_killed_at_once_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / kind
    lines = {
        "ledger": '{"step":1,"samples":[0]}\n{"step":2,"samples":[1]}\n',
        "figures": "step,name,value\r\n1,train/loss,2.5\r\n2,train/loss,2.25\r\n",
    }[kind]
    path.write_text(lines, encoding="utf8", newline="")

    def resume() -> None:
        if kind == "figures":
            LongCSVLogger(path, resumed_at=1)
        else:
            trainer: Any = SimpleNamespace(is_global_zero=True)
            Ledger(path, resumed_at=1).on_train_start(trainer, None)  # type: ignore[arg-type]

    def killed(*_: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(SystemExit, match="killed"):
            resume()
    assert path.read_bytes().decode() == lines
    resume()
    assert path.read_bytes().decode() == "".join(
        line for line in lines.splitlines(keepends=True) if "2" not in line[:10]
    )
