"""Flags and settings of Hydra's own that would do nothing here: refused, with the word to type instead."""

from pretrain.errors import ConfigError

# flags that show something, and those that go with them
_KNOWN = ("-h", "--help", "-m", "--multirun", "-c", "--cfg", "-i", "--info", "-p", "--package", "--resolve",
          "--hydra-help", "--version")  # fmt: skip


_FLAGS = {
    ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"): "put settings of your own into "
    "configs/experiment/<name>.yaml and choose them by experiment=<name>",
    ("--run", "-r"): "a script runs without it. Leave it out",
    ("--experimental-rerun",): "a run goes on by resume=<its folder>",
    ("--shell-completion", "-sc"): "there is no completion; --help lists every word",
}


_SETTINGS = {
    "hydra.run.dir": "paths.run_dir=<folder>",
    "hydra.sweep.dir": "paths.logs_dir=<folder>, where a sweep makes one",
    "hydra.sweep.subdir": "paths.logs_dir=<folder>, where a sweep makes one for each job",
    "hydra.job.name": "name=<name>",
    "hydra.job.chdir": "paths.run_dir=<folder>, as a run stays in the folder where it is typed",
    "hydra.launcher": "-m, which runs the jobs of a sweep one after another; on a cluster sbatch configs/slurm.sh",
    "hydra.sweeper": "-m with values listed: optimizer.learning_rate=0.001,0.003",
    "hydra.verbose": "trainer.log_every_n_steps=1",
    "hydra.job_logging": "logger=all, csv, tensorboard, wandb, mlflow, comet or none",
    "hydra.hydra_logging": "logger=all, csv, tensorboard, wandb, mlflow, comet or none",
}


def refuse_idle(words: list[str]) -> None:
    """Raise ConfigError for the first word that Hydra would take and that changes nothing here."""
    for word in words:
        if word.startswith("-"):
            _check_flag(word)
            continue
        key = word.partition("=")[0].lstrip("+~").replace("/", ".").partition("@")[0]
        if key == "hydra" or key.startswith("hydra."):
            instead = next((ours for name, ours in _SETTINGS.items() if f"{key}.".startswith(f"{name}.")), None)
            way = f"Try {instead}." if instead else "Leave it out."
            raise ConfigError(f"{word} sets something of Hydra's that has no effect here. {way}")


def _check_flag(word: str) -> None:
    flag = word.partition("=")[0]
    if flag in _KNOWN:
        return
    instead = next((ours for names, ours in _FLAGS.items() if flag in names), None)
    if instead is None:
        setting = flag.lstrip("-").replace("-", "_")
        instead = f"settings have no dashes, such as {setting}=5" if setting else "settings are typed key=value"
        raise ConfigError(f"{word} is no flag of this script; {instead}. All of them: --help")
    raise ConfigError(f"{word} would do nothing: {instead}.")
