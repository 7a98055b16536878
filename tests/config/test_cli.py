"""Each mistake on a command line gets one sentence that names it and suggests a fix."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from pretrain.config import preset_folders
from pretrain.config.cli import as_pretrain_error, main
from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError, DataError
from pretrain.inference.config import GenerateConfig

REPOSITORY = Path(__file__).parents[2]


def refused(*words: str) -> str:
    """Return the message that these words are refused with."""
    with pytest.raises(ConfigError) as caught:
        compose("train", list(words))
    message = str(caught.value)
    assert "\n" not in message
    return message


MISTYPED = [
    (["model.n_layer=3"], "model.n_layer is not a setting. Did you mean model.n_layers?"),
    (["++model.n_layer=3"], "model.n_layer is not a setting. Did you mean model.n_layers?"),
    (["+model.n_layer=3"], "model.n_layer is not a setting. Did you mean model.n_layers?"),
    (["+trainer.strategi=ddp"], "trainer.strategi is not a setting."),
    (
        ["++model.rope_scaling.knd=none"],
        "model.rope_scaling.knd is not a setting. Did you mean model.rope_scaling.kind?",
    ),
    (["nam=x"], "nam is not a setting. Did you mean name?"),
    (["q.b.c=3"], "q is not a setting. There are: allow_change, batch_size"),
    (["trainer.max_steps=1oo"], "trainer.max_steps=1oo does not fit: Value '1oo' of type 'str' could not be converted"),
    (["seed=1.5"], "seed=1.5 does not fit: Value '1.5'"),
    (["optimizer.learning_rate=fast"], "optimizer.learning_rate=fast does not fit: Value 'fast'"),
    (["model.tie_embeddings=maybe"], "model.tie_embeddings=maybe does not fit: Value 'maybe' is not a valid bool"),
    (["model.norm=batch"], "model.norm=batch does not fit: Invalid value 'batch', expected one of [layer, rms]"),
    (["model.n_layers=null"], "model.n_layers=null does not fit: field 'model.n_layers' is not Optional"),
    (["model=gtp_small"], "model=gtp_small is not a preset. Did you mean gpt_small?"),
    (["+model=gtp_small"], "model=gtp_small is not a preset. Did you mean gpt_small?"),
    (["model=zzz"], "model=zzz is not a preset. There are: bert_base, "),
    (["model=[gpt_nano,gtp_small]"], "model=gtp_small is not a preset."),
    (["data=text_files"], "data.path has no value, and needs one. Give it as data.path=... on the command line."),
    (
        ["optimizer=adamw", "optimizer.momentum=0.9"],
        "optimizer.momentum is a setting of optimizer=muon only. Choose that as well: optimizer=muon",
    ),
    (["max_steps"], "'max_steps' is not a setting with a value. Write key=value, such as trainer.max_steps=100."),
    (["+seed=7"], "Could not append to config. An item is already at 'seed'."),
    (["seed='a"], '"seed=\'a" cannot be read. Quote special characters twice: \'seed="..."\'.'),
    (["model.n_layers={"], "'model.n_layers={' cannot be read."),
    (["~model.n_layers"], "~model.n_layers would delete a setting, and a run needs every setting."),
    (["~model"], "~model would delete a setting"),
    (["data=text_files", "data.path=x", "model.n_layer=3"], "model.n_layer is not a setting."),
]


UNANSWERED = [
    (["=3"], "'=3' is not a setting with a value."),
    (["trainer=null"], "trainer=null is not a preset. There are: auto, cpu, ddp, debug, fsdp, gpu."),
    (["model="], "model= is not a preset. There are: bert_base, "),
    (["seed=1,2"], "'seed=1,2' gives several values, which is a sweep. Add -m to run one after the other."),
    (["model.n_layers=${nothing}"], "the settings cannot be resolved: model.n_layers: Interpolation key 'nothing'"),
    (["model.kind=llama"], "model.kind=llama cannot be set. Choose a preset instead: model=..."),
    (["optimizer.kind=adamw"], "optimizer.kind=adamw cannot be set. Choose a preset instead: optimizer=..."),
]


@pytest.mark.parametrize(("words", "message"), UNANSWERED)
def test_what_is_no_value_at_all_is_named(words: list[str], message: str) -> None:
    assert refused("seed=3", *words).startswith(message)


@pytest.mark.parametrize(("words", "message"), MISTYPED)
def test_what_is_mistyped_is_named(words: list[str], message: str) -> None:
    assert refused("seed=3", *words).startswith(message)


OUT_OF_RANGE = [  # one of each rule, and what settings must be together; test_setting.py goes through all bounds
    (["model.n_layers=0"], "model.n_layers=0 is below 1. Try model.n_layers=12."),
    (["model.init_std=nan"], "model.init_std=nan is not a number above 0. Try model.init_std=0.02."),
    (
        ["model.d_model=130", "model.n_heads=4"],
        "model.d_model=130 does not split into model.n_heads=4 equal heads. Try model.d_model=128.",
    ),
    (  # 129 would leave heads of 43, and rotary positions turn pairs of channels
        ["model.n_heads=3"],
        "model.d_model=128 does not split into model.n_heads=3 equal heads. Try model.d_model=126.",
    ),
    (
        ["trainer.devices=-1"],
        "trainer.devices=-1 takes all GPUs of a machine, and trainer.strategy=single one device. "
        "Try trainer.devices=1, or trainer=ddp for all GPUs.",
    ),
    (
        ["model.n_kv_heads=3", "model.n_heads=4"],
        "model.n_kv_heads=3 does not divide model.n_heads=4. Try model.n_kv_heads=2.",
    ),
    (  # at once, although a number so large has many candidates for divisors
        ["model.n_kv_heads=3", "model.n_heads=65519", "model.head_dim=8"],
        "model.n_kv_heads=3 does not divide model.n_heads=65519. Try model.n_kv_heads=1.",
    ),
    (
        ["model.n_kv_heads=0", "model.n_heads=4"],
        "model.n_kv_heads=0 does not divide model.n_heads=4. Try model.n_kv_heads=1.",
    ),
    (
        ["model.position=rope", "model.head_dim=7"],
        "model.position=rope turns pairs of channels, but a head is 7 wide.",
    ),
    (["model.sliding_window=0"], "model.sliding_window=0 is below 1. Try model.sliding_window=128, or null for none."),
    (["model.rope_scaling.factor=0.5"], "model.rope_scaling.factor=0.5 is not a number from 1 up."),
    (["model.rope_scaling.low_freq_factor=4"], "model.rope_scaling.low_freq_factor=4.0 must be below high_freq_"),
    (
        ["objective=masked", "objective.mask_token_prob=0.95"],
        "objective.mask_token_prob=0.95 and objective.random_token_prob=0.1 add up to more than 1. Try ",
    ),
    (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1.0 is not a number from 0 up."),
    (["schedule=cosine", "schedule.min_lr_ratio=2"], "schedule.min_lr_ratio=2.0 is not a share from 0 to 1."),
    (["data=hugging_face", "data.path=x", "data.max_documents=-1"], "data.max_documents=-1 is negative."),
    (["tokenizer.vocab_size=200"], "tokenizer.vocab_size=200 is below 260. Try tokenizer.vocab_size=2048."),
    (["trainer.devices=0"], "trainer.devices=0 is below 1."),
    (["trainer.accelerator=tpu"], "trainer.accelerator=tpu is none of auto, cpu, gpu, mps."),
    (["checkpoint.keep=-1"], "checkpoint.keep=-1 is negative. Try checkpoint.keep=2, or 0 for all."),
    (["batch_size=0"], "batch_size=0 is below 1. Try batch_size=16."),
    (["batch_size=10", "micro_batch_size=4"], "batch_size=10 is not a whole number of micro-batches: one holds 4 rows"),
    (["micro_batch_size=-2"], "micro_batch_size=-2 is below 1. Try micro_batch_size=8."),
    (["micro_batch_size=0"], "micro_batch_size=0 is below 1. Try micro_batch_size=8."),
    (["resume=a", "init_from=b"], "resume=a continues a run and init_from=b starts a new one: give only one, or"),
]


@pytest.mark.parametrize(("words", "message"), OUT_OF_RANGE)
def test_what_is_out_of_range_is_named_with_a_way_on(words: list[str], message: str) -> None:
    assert refused(*words).startswith(message)


@pytest.mark.slow
def test_settings_arrive_typed() -> None:
    words = [
        "model=bert_nano",
        "model.n_layers=3",
        "++seed=7",
        "++trainer.max_steps=9",
        "model.sliding_window=null",
        "name=a b",
    ]
    config: RunConfig = compose("train", words)
    assert type(config) is RunConfig
    assert (config.model.n_layers, config.seed, config.trainer.max_steps, config.name) == (3, 7, 9, "a b")
    assert config.model.sliding_window is None


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the configuration folder, to be added to."""
    folder = shutil.copytree(preset_folders.CONFIG_FOLDER, tmp_path / "configs")
    (folder / "experiment").mkdir(exist_ok=True)
    monkeypatch.setattr(preset_folders, "CONFIG_FOLDER", folder)
    return folder


@pytest.mark.slow
def test_an_experiment_file_is_read(configs: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /model: bert_nano\nmodel:\n  n_layers: 2\n"
    (configs / "experiment" / "mine.yaml").write_text(text)
    config: RunConfig = compose("train", ["experiment=mine"])
    assert (config.model.n_layers, config.name) == (2, "bert_nano")
    assert compose("train", ["experiment=mine", "model.n_layers=5"]).model.n_layers == 5
    assert refused("experiment=mien") == "experiment=mien is not a preset. Did you mean mine?"


@pytest.mark.slow
def test_whole_numbers_of_preset_files_may_have_exponents(configs: Path) -> None:
    (configs / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: mixture\n  - override /model: mine\n"
        "batch_size: 1.6e1\nseed: '1e2'\ntrainer:\n  max_tokens: 1e23\n  max_steps: 2E+3\n"
        "optimizer:\n  learning_rate: 1e0\nsample:\n  prompts: ['1e2']\n"
        "data:\n  sources:\n    a: {kind: text_files, path: '1e5', weight: 1e0}\n"
        "    b: {kind: hugging_face, path: x, max_documents: 1e4, weight: 2}\n"
    )
    (configs / "model" / "mine.yaml").write_text(
        "defaults:\n  - TransformerConfig\n  - _self_\nn_layers: 2\nd_model: 6.4e1\nn_heads: 4\ncontext_length: '1e2'\n"
    )
    config: RunConfig = compose("train", ["experiment=mine"])
    found = [config.batch_size, config.seed, config.trainer.max_tokens, config.trainer.max_steps]
    found += [config.model.d_model, config.model.context_length]
    assert found == [16, 100, 10**23, 2000, 64, 100]
    assert all(isinstance(number, int) for number in found)
    assert (config.optimizer.learning_rate, config.sample.prompts) == (1.0, ["1e2"])
    assert isinstance(config.optimizer.learning_rate, float)
    sources = config.data.sources
    assert (sources["a"].text.path, sources["a"].weight, sources["b"].text.max_documents) == ("1e5", 1.0, 10_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model:\n  n_layer: 2\n",
            "model.n_layer in experiment/mine.yaml is not a setting. Did you mean model.n_layers?",
        ),
        (
            "tokenizer:\n  max_training_bytes: 9\n  path: x\n",
            "tokenizer.path in experiment/mine.yaml is a setting of tokenizer=pretrained, and tokenizer=bpe is chosen. "
            "Choose tokenizer=pretrained, or leave tokenizer.path out of the file.",
        ),
        ("trainr:\n  max_steps: 2\n", "trainr in experiment/mine.yaml is not a setting. Did you mean trainer?"),
        ("trainer:\n  max_steps: many\n", "trainer.max_steps in experiment/mine.yaml does not fit: Value 'many' of"),
        ("batch_size: 1.5\n", "batch_size in experiment/mine.yaml does not fit: Value '1.5' of type 'float' could not"),
        ("seed: 1e-3\n", "seed in experiment/mine.yaml does not fit: Value '0.001' of type 'float' could not"),
        ("seed: .inf\n", "seed in experiment/mine.yaml does not fit: Value 'inf' of type 'float' could not"),
        ("seed: '1e'\n", "seed in experiment/mine.yaml does not fit: Value '1e' of type 'str' could not"),
    ],
)
def test_a_wrong_key_in_an_experiment_file_is_named(configs: Path, text: str, message: str) -> None:
    (configs / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    assert refused("experiment=mine", "seed=3").startswith(message)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str, task: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    main("generate", GenerateConfig, task, free_text="prompt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt",
    [
        *("a", "it's [MASK], {a: b}", "$x y} = 'q' \"z\"", "", "a\\", "käse\n(1, 2)", "\\'"),
        "x \\n",
        "${y}",
        "\\${a",
        "\\\\${oc.env:HOME}",
    ],
)
def test_a_prompt_needs_no_quoting(monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    seen: list[tuple[GenerateConfig, list[str]]] = []
    run_main(monkeypatch, f"prompt={prompt}", "seed=3", task=lambda config, words: seen.append((config, words)))
    assert (seen[0][0].prompt, seen[0][0].seed) == (prompt, 3)


@pytest.mark.slow
def test_an_error_ends_in_its_message_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: GenerateConfig, words: list[str]) -> None:
        raise DataError("the text is gone.")

    for words, code, message in [
        (
            ["seed=x"],
            2,
            "ConfigError: seed=x does not fit: Value 'x' of type 'str' could not be converted to Integer. "
            "Try seed=0.\n",
        ),
        ([], 3, "DataError: the text is gone.\n"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run_main(monkeypatch, *words, task=fail)
        assert stopped.value.code == code
        assert capsys.readouterr().err == message


@pytest.mark.slow
@pytest.mark.parametrize("error", [MemoryError("no 7 TiB"), RuntimeError("x: can't allocate memory: 8 bytes")], ids=str)
def test_where_memory_ends_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fill(config: GenerateConfig, words: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, task=fill)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"ConfigError: there is not enough memory for these settings ({error}). Try a smaller micro_batch_size, "
        "model.context_length or model; python src/plan.py prints the memory of a run.\n"
    )
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_main(monkeypatch, task=lambda config, words: (_ for _ in ()).throw(RuntimeError("a fault of ours")))


@pytest.mark.slow
def test_a_typo_is_answered_at_once_and_help_loads_no_torch() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    typed = [sys.executable, str(REPOSITORY / "src" / "train.py"), "model.n_layer=3"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(typed, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # seconds of a processor: others may be busy on it
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 3.0  # 0.6 where nobody else is
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "ConfigError: model.n_layer is not a setting. Did you mean model.n_layers?\n"
    code = "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_path('src/train.py', run_name='__main__')"
    watched = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    shown = subprocess.run(
        [sys.executable, "-c", watched], capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False
    )
    assert shown.returncode == 0
    assert "Pre-train a causal, masked or diffusion Transformer" in shown.stdout
    assert shown.stderr == "False\n"


@pytest.mark.slow
def test_a_recipes_micro_batch_follows_a_smaller_batch(capsys):
    config = compose("train", ["model=gpt_small", "batch_size=4"])
    assert (config.batch_size, config.rows_per_micro_batch()) == (4, 4)
    assert capsys.readouterr().out == "micro_batch_size=8 of the recipe is above batch_size=4, and is lowered to fit.\n"
    assert compose("train", ["model=gpt_small", "batch_size=16"]).rows_per_micro_batch() == 8
    with pytest.raises(ConfigError, match="batch_size=4 is not a whole number of micro-batches"):
        compose("train", ["model=gpt_small", "batch_size=4", "micro_batch_size=8"])


def test_an_error_of_a_plugin_of_hydra_is_one_line_and_ours_behind_it_is_told() -> None:
    plugin = HydraException("the sweeper\n  cannot   do this")
    found = as_pretrain_error(plugin)
    assert (type(found), str(found)) == (ConfigError, "the sweeper cannot do this")
    plugin.__cause__ = DataError("no text")
    assert as_pretrain_error(plugin) is plugin.__cause__
