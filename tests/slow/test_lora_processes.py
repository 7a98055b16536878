"""LoRA is the same on one process and on two, DDP or FSDP2: losses, adapters and what a checkpoint computes."""

import json
from pathlib import Path

import pytest
from job import TWO, Job, assert_same_weights, losses

from pretrain.language_model import LanguageModel

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_two_processes_train_adapters_as_one_does(job: Job, tmp_path: Path) -> None:
    base = job.run("base", "model=llama_nano", "optimizer=adamw", "trainer.max_steps=2")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"{n} and", "response": f"{n + 1}"}) + "\n" for n in range(80)))
    job.words = [word for word in job.words if not word.startswith(("data", "model.", "tokenizer"))]
    job.words += ["experiment=lora", f"init_from={base}", f"data.path={pairs}", "schedule.warmup_steps=2"]
    one = job.run("one")
    assert len(losses(one)) == 10
    for strategy in ("ddp", "fsdp"):
        two = job.run(strategy, f"trainer={strategy}", *TWO, "micro_batch_size=2")
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        assert_same_weights(one, two, atol=1e-4)
        assert LanguageModel.load(two).generate("3", temperature=0) == LanguageModel.load(one).generate(
            "3", temperature=0
        )
