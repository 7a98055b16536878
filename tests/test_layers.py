"""Imports go one way only: from scripts down to settings."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# a module may import from rows below its own, and from what its own entry names
LAYERS = [
    {"command_line"},
    {"sweep", "doctor", "slurm", "help_page", "composed_tree", "hydra_words"},
    {"training", "score", "export", "inspection", "lm_eval_adapter"},
    {"language_model", "imported", "planning"},
    {"model_folder"},
    {"recorded_paths"},
    {"evaluation", "inference", "checkpoint", "checkpoint_writing", "run_folder", "interop", "parallel", "rehearsal"},
    {"typed_words", "near_misses", "preset_files"},
    {"whole_numbers"},
    {"script_config", "declared"},
    {"config"},
    {"tensor_file", "mixture_config"},
    {"models", "objectives", "data", "optim", "device", "launcher", "seed"},
    {"compiling", "largest_sizes"},
    {
        "errors",
        "asked_to_stop",
        "escapes",
        "untrusted_files",
        "records",
        "compiling",
        "matrix_products",
        "memory_reuse",
        "",
    },
]
SIBLINGS = {("training", "command_line"), ("checkpoint_writing", "checkpoint")}
ONLY_IN = {
    "lightning": {"training"},
    "hydra": {"command_line", "preset_files", "sweep", "typed_words"},
    "omegaconf": {
        "command_line",
        "composed_tree",
        "config",
        "help_page",
        "mixture_config",
        "preset_files",
        "script_config",
    },
    "transformers": {"interop"},
    "lm_eval": {"lm_eval_adapter"},
}


def part_of(path: Path) -> str:
    """Return the package or module directly below `pretrain` that a file belongs to."""
    first = path.relative_to(SOURCE / "pretrain").parts[0]
    return first.removesuffix(".py").replace("__init__", "")


def imports(path: Path) -> list[str]:
    """Return every module that a file imports, but for those that only the type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    hidden = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def level(part: str) -> int:
    return next(number for number, row in enumerate(LAYERS) if part in row)


FILES = sorted((SOURCE / "pretrain").rglob("*.py"))


def test_every_file_is_visited():
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path):
    part = part_of(path)
    for module in imports(path):
        if module.startswith("pretrain") and part:
            other = module.split(".")[1] if "." in module else ""
            settings = module.endswith(".config")
            below = other == part or settings or level(other) > level(part) or (part, other) in SIBLINGS
            assert below, f"{path.name} imports {module}, which does not lie below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_frameworks_stay_in_their_rooms(path: Path):
    for module in imports(path):
        allowed = ONLY_IN.get(module.split(".")[0])
        assert allowed is None or part_of(path) in allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.name.endswith(("config/run.py", "errors.py"))],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_settings_load_without_torch(path: Path):
    tree = ast.parse(path.read_text(encoding="utf8"))
    at_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in at_top if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in at_top if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("torch", "lightning", "numpy")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_untrusted_files_never_run_code(path: Path):
    """Only `checkpoint/safetensors_file.py` reads tensors, and nothing unpickles."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            called = f"{owner}.{node.func.attr}"
            assert called not in ("torch.load", "pickle.load", "pickle.loads", "yaml.load", "numpy.load", "np.load")
            assert node.func.attr != "load_from_checkpoint"
            for keyword in node.keywords:
                assert keyword.arg not in ("trust_remote_code", "allow_pickle") or ast.unparse(keyword.value) == "False"
