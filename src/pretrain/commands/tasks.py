"""What each command does: `pretrain train`, or `python src/train.py` in a clone, and so on.

Settings are read before torch is loaded, so each task imports what it needs.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.config import cli
from pretrain.config.curate import CurateConfig, ExplainConfig, ForgetConfig, VerifyConfig
from pretrain.config.preset_folders import chosen_settings
from pretrain.config.run import RunConfig
from pretrain.config.scripts import (
    AverageConfig,
    CompareConfig,
    ExportConfig,
    InspectConfig,
    PrepareConfig,
    ReportConfig,
)
from pretrain.config.serialize import to_dict
from pretrain.doctor.config import DoctorConfig
from pretrain.errors import printable
from pretrain.evaluation.config import EvalConfig
from pretrain.inference.config import GenerateConfig
from pretrain.planning.config import PlanConfig, ScaleConfig
from pretrain.program import command


def train(config: RunConfig | None, overrides: list[str]) -> float | None:
    """Run the training that `config` describes; return its validation loss, which a sweeper minimizes."""
    from pretrain.training.launch import launch

    return launch(config, overrides)


def plan(config: PlanConfig, overrides: list[str]) -> None:
    """Print what the run that `config` describes takes, settings that fit, or forecast against measurement."""
    from pretrain.planning.answer import forecast_in_words

    text, planned = forecast_in_words(config, chosen_settings(overrides))
    print(printable(text))
    if config.report and planned is not None:
        from pretrain.reports.plan import write_plan

        write_plan(Path(config.report), planned, config, text)
        print(printable(f"\nreport      {config.report}"))


def doctor(config: DoctorConfig, overrides: list[str]) -> None:
    """Print a row for each check of the run that `config` describes; exit with 1 where one fails."""
    from pretrain.doctor.examination import examine

    if not examine(config.run_config(), config.doctor):
        sys.exit(1)


def prepare(config: PrepareConfig, overrides: list[str]) -> None:
    """Prepare the tokenizer and the token stores of every source, and print their totals."""
    from pretrain.data.prepare import finish_stream
    from pretrain.data.prepare import prepare as prepare_corpus
    from pretrain.data.token_store.prepared_folder import write_prepared

    prepared = prepare_corpus(config.data, config.tokenizer, Path(config.paths.cache_dir))
    finish_stream(prepared, config.data)
    fingerprint = prepared.tokenizer.fingerprint[:16]
    print(printable(f"tokenizer   {prepared.tokenizer.vocab_size:,} tokens, fingerprint {fingerprint}"))
    for source, corpus in prepared.corpora.items():
        if source:
            print(printable(f"source      {source}", one_line=True))
        print(printable(f"folder      {corpus.folder}", one_line=True))
        for name, store in (("train", corpus.train), ("validation", corpus.validation)):
            if store is None:
                print(printable(f"{name:<11} none"))
            else:
                store.verify()
                line = (
                    f"{name:<11} {store.n_documents:,} documents, {store.n_tokens:,} tokens, "
                    f"{store.text_bytes:,} bytes of text, "
                    f"{store.text_bytes / max(1, store.n_tokens):.2f} bytes a token; every file verified"
                )
                print(printable(line))
    if config.output is not None:
        write_prepared(Path(config.output).expanduser(), prepared.corpora[""].folder, config.data.validation_fraction)
        line = f"{config.output}; to train on it: {command('train')} data=prepared {_typed_path(config.output)}"
        print(printable(f"written     {line}", one_line=True))


def _typed_path(folder: str) -> str:
    """Return data.path as it is typed in a shell, where a folder's name may hold blanks."""
    return shlex.quote(f"data.path={folder}")


def curate(config: CurateConfig, overrides: list[str]) -> None:
    """Write the corpus that `config` describes, and print what was read, removed and kept."""
    from pretrain.data.curation.curate import curate as curate_corpus
    from pretrain.data.curation.manifest import overview
    from pretrain.reports.curation import write_corpus_report

    manifest = curate_corpus(config, lambda line: print(printable(line)))
    for line in overview(manifest):
        print(printable(line, one_line=True))
    report = write_corpus_report(Path(config.output).expanduser())
    print(printable(f"report      {report}", one_line=True))
    print(
        printable(
            f"corpus      {config.output}; to train on it: {command('train')} data=curated {_typed_path(config.output)}"
        )
    )


def verify(config: VerifyConfig, overrides: list[str]) -> None:
    """Print the totals of a corpus after a check of every hash and count."""
    from pretrain.data.curation.verify import verify as verify_corpus

    base = None if config.base is None else Path(config.base).expanduser()
    found = verify_corpus(Path(config.path).expanduser(), base)
    line = f"{found.documents:,} documents, {found.characters:,} characters in {found.shards:,} shards"
    print(printable(f"verified    {line}; every hash and count is that of the manifest"))
    if found.removed:
        unseen = f"; {found.in_base:,} in the base corpus, which base=... checks too" if found.in_base else ""
        line = f"{found.removed:,} removed, each with a kept twin that is as similar as asked"
        print(printable(f"duplicates  {line}; {found.compared:,} near-duplicates compared again by their text{unseen}"))


def explain(config: ExplainConfig, overrides: list[str]) -> None:
    """Print why documents of a corpus were removed, or which rules removed how many."""
    from pretrain.data.curation.explain import explain_id, explain_rule, lines_of, rule_lines

    folder = Path(config.path).expanduser()
    if config.id is not None:
        found = explain_id(folder, config.id, config.n)
    elif config.rule:
        found = explain_rule(folder, config.rule, config.n)
    else:
        found = []
        for line in rule_lines(folder):
            print(printable(line, one_line=True))
    for number, document in enumerate(found):
        lines = lines_of(document, config.characters, all_rules=config.id is not None)
        for line in ([""] if number else []) + lines:
            print(printable(line, one_line=True))


def forget(config: ForgetConfig, overrides: list[str]) -> None:
    """Take documents out of a corpus, after it is printed who read them."""
    from pretrain.data.curation.forget import (
        Request,
        find_documents,
        fingerprints_of,
        finish_forgetting,
        forgotten_before,
    )
    from pretrain.data.curation.forget import forget as forget_documents
    from pretrain.data.curation.output_folder import locked
    from pretrain.evaluation.readers import lines_of, readers, stores_that_hold
    from pretrain.reports.curation import write_corpus_report

    folder, cache = Path(config.path).expanduser(), Path(config.paths.cache_dir)
    request = Request(config.id, config.url, config.domain, config.text, config.file)
    finish_forgetting(folder)
    found = find_documents(folder, request) if request else forgotten_before(folder)
    stores = stores_that_hold(found.ids, cache, [Path(each).expanduser() for each in config.exports])
    roots = [Path(config.paths.logs_dir), *map(Path, config.exports)]
    for line in lines_of(found, stores, readers(fingerprints_of(folder), stores, roots, cache)):
        print(printable(line, one_line=True))
    if config.dry_run:
        print("dry run     nothing was changed")
        return
    if request:
        with locked(folder):
            forget_documents(folder, found, request.tombstones())
        report = write_corpus_report(folder)
        print(printable(f"forgotten   {len(found.kept):,} documents; work/ was deleted, the report is {report}"))
    for corpus in sorted({store.corpus for store in stores}):
        again = f"{command('forget')} {shlex.quote(f'path={folder}')} delete_stores=true deletes it"
        if config.delete_stores:
            shutil.rmtree(corpus, ignore_errors=True)
        print(printable(f"tokens      {corpus} {'was deleted' if config.delete_stores else f'stays: {again}'}"))


def inspect(config: InspectConfig, overrides: list[str]) -> None:
    """Print the rows of a step of a run: their ids, documents and text."""
    from pretrain.evaluation.inspect_step import rows_of_step
    from pretrain.interop.load import chosen_model

    folder = chosen_model(config.run, config.paths)
    print(printable(f"step {config.step} of {folder}", one_line=True))
    for row in rows_of_step(folder, config.step):
        print(printable(f"row {row.id}, sample {row.sample}{' (left out)' if row.excluded else ''}", one_line=True))
        for piece in row.pieces:
            at = f" from token {piece.offset}" if piece.offset else ""
            text = piece.marked[: config.characters] + ("..." if len(piece.marked) > config.characters else "")
            line = f"  document {piece.document} ({piece.name}){at}, {piece.tokens} tokens: {text}"
            print(printable(line, one_line=True))
            for learned in piece.learned:
                print(printable(f"    learned: {learned[: config.characters]}", one_line=True))


def generate(config: GenerateConfig, overrides: list[str]) -> None:
    """Print the completion, the response, the predictions for each mask, the label probabilities, or a number."""
    from pretrain.commands.generating import generate as generate_text

    generate_text(config)


def evaluate(config: EvalConfig, overrides: list[str]) -> None:
    """Print the figures of the task, one a line or as a table, and write them with the settings to `output`."""
    from pretrain.commands.glue import glue_table, score_glue
    from pretrain.commands.output_file import check_writable, write_output
    from pretrain.evaluation.config import Task
    from pretrain.evaluation.needle import needle_table
    from pretrain.evaluation.run import score
    from pretrain.interop.load import chosen_model
    from pretrain.reports.groups import as_json

    if config.output:
        check_writable("output", Path(config.output))
    path = chosen_model(config.checkpoint, config.paths)
    if config.task is Task.glue and not config.tasks:
        figures = score_glue(config, path)
        print(printable(glue_table(figures)))
    else:
        figures = score(config, path)
        is_table = config.task is Task.needle and not config.tasks
        lines = {name: value for name, value in figures.items() if not (is_table and "/" in name)}
        width = max(16, *(len(name) for name in lines))
        for name, value in lines.items():
            shown = f"{value:,.4f}" if isinstance(value, float) else value
            print(printable(f"{name:<{width}} {shown}"))
        if is_table:
            print(printable(f"\n{needle_table(figures)}"))
    if config.output:
        write_output("output", Path(config.output), as_json(figures | {"settings": to_dict(config)}))


def export(config: ExportConfig, overrides: list[str]) -> None:
    """Write the folder, compare it with the model it was made of, say how to load it, and push it where asked."""
    from pretrain.interop.export import export_adapters, export_model
    from pretrain.interop.load import chosen_model
    from pretrain.interop.push import push_folder, sign_in

    path = chosen_model(config.checkpoint, config.paths)
    account = sign_in(config)
    print(printable(export_adapters(config, path) if config.adapters else str(export_model(config, path))), flush=True)
    if account is not None:
        print(printable(push_folder(config, account)))


def average(config: AverageConfig, overrides: list[str]) -> None:
    """Write the average and print where it is."""
    from pretrain.checkpoint.average import average as write_average
    from pretrain.checkpoint.average import last_checkpoints
    from pretrain.checkpoint.remote import local_copy, local_path
    from pretrain.files.object_storage import is_remote
    from pretrain.interop.load import chosen_model, run_or_model

    cache = Path(config.paths.cache_dir)
    folders = [local_path(each, cache) for each in config.checkpoints]
    if not folders and is_remote(config.run):
        folders = last_checkpoints(local_copy(config.run, cache, last=config.last), config.last)
    elif not folders:
        folders = last_checkpoints(run_or_model(Path(chosen_model(config.run, config.paths))), config.last)
    path = write_average(folders, Path(config.output))
    print(printable(f"averaged {len(folders)} checkpoints\ncheckpoint  {path}"))


def report(config: ReportConfig, overrides: list[str]) -> None:
    """Write the report and print where it is."""
    from pretrain.checkpoint.read import latest_run
    from pretrain.launch.remote_runs import local_figures
    from pretrain.reports.write import write_report

    auto = config.path == "auto"
    folder = latest_run(config.paths.logs_dir) if auto else local_figures(config.path, config.paths.cache_dir)
    path = write_report(folder, Path(config.output) if config.output else None)
    print(printable(f"report      {path}", one_line=True))


def compare(config: CompareConfig, overrides: list[str]) -> None:
    """Print and write the comparison of the runs."""
    from pretrain.launch.remote_runs import local_figures
    from pretrain.reports.compare import CompareOptions
    from pretrain.reports.comparison_page import in_words, write_comparison

    options = CompareOptions(config.metric, config.target, config.confidence)
    output = Path(config.output or f"{config.paths.logs_dir}/compare.html").expanduser()
    runs = [str(local_figures(run, config.paths.cache_dir)) for run in config.runs]
    comparison, data = write_comparison(runs, options, output)
    print(printable(in_words(comparison)))
    print(printable(f"\nreport      {output}\ndata        {data}"))


def scale(config: ScaleConfig, overrides: list[str]) -> None:
    """Train a ladder of sizes and lengths, fit a scaling law, and print and write what it says."""
    from pretrain.commands.scale import scale as scale_ladder

    scale_ladder(config, sys.argv[1:])  # with Hydra's own words, for the launcher of the runs


class _Command(NamedTuple):
    config_class: type
    task: Callable[[Any, list[str]], object]
    free_text: str = ""  # a setting whose value needs no quoting beyond the shell's
    positional: str = ""  # the list that words without a key belong to


_COMMANDS = {
    "train": _Command(RunConfig, train),
    "plan": _Command(PlanConfig, plan),
    "doctor": _Command(DoctorConfig, doctor),
    "curate": _Command(CurateConfig, curate),
    "verify": _Command(VerifyConfig, verify),
    "explain": _Command(ExplainConfig, explain, "id"),
    "forget": _Command(ForgetConfig, forget, "text"),
    "prepare": _Command(PrepareConfig, prepare),
    "inspect": _Command(InspectConfig, inspect),
    "generate": _Command(GenerateConfig, generate, "prompt"),
    "eval": _Command(EvalConfig, evaluate, "delimiter"),
    "average": _Command(AverageConfig, average),
    "export": _Command(ExportConfig, export),
    "report": _Command(ReportConfig, report),
    "compare": _Command(CompareConfig, compare, positional="runs"),
    "scale": _Command(ScaleConfig, scale),
}


def main(name: str, *, typed: bool = False) -> None:
    """Do what the command line says; `typed`: its first word is the command's name."""
    config_class, task, free_text, positional = _COMMANDS[name]
    subcommand = name if typed else ""
    cli.main(name, config_class, task, free_text=free_text, positional=positional, subcommand=subcommand)
