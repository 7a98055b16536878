"""Imports go one way only, from scripts to settings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def block(name: str) -> list[str]:
    """Return the lines of a block of CONTRIBUTING.md."""
    found = re.search(rf"^```{name}\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert found, name
    return found[1].splitlines()


LAYERS = [line.split() for line in block("layers")]
ROOMS = {library: rooms.split() for library, rooms in (line.split(":") for line in block("rooms"))}


def module_of(path: Path) -> str:
    """Return the name of a file's module below `pretrain`; of `__init__.py`, that of its package."""
    return ".".join(path.relative_to(SOURCE / "pretrain").with_suffix("").parts).removesuffix("__init__").strip(".")


def imports(path: Path) -> list[str]:
    """Return every module that a file imports, but for those that only the type checker reads.

    Nor does what the `build` of a config class imports from its own package count: it makes what the class describes.
    """
    tree = ast.parse(path.read_text(encoding="utf8"))
    hidden = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    by_build = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "build" and path.stem.endswith("config")
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[:2] == ["pretrain", own_package(path)]
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden | by_build:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                f"{node.module}.{alias.name}" if is_module(node.module, alias.name) else node.module
                for alias in node.names
            ]
    return found


def own_package(path: Path) -> str:
    return module_of(path).split(".")[0]


def is_module(package: str, name: str) -> bool:
    return (SOURCE / package.replace(".", "/") / f"{name}.py").is_file()


def level(module: str) -> int:
    """Return the line of a module in the list: its own, else that of the nearest package around it."""
    rows = {name: number for number, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    return next((rows[name] for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in rows), -1)


FILES = sorted((SOURCE / "pretrain").rglob("*.py"))


def test_every_file_is_visited():
    assert len(FILES) > 50


def test_every_module_has_a_line():
    names = [name for names in LAYERS for name in names]
    assert len(names) == len(set(names))
    assert not [name for name in names if not list(SOURCE.glob(f"pretrain/{name.replace('.', '/')}*"))]
    assert not [path for path in FILES if module_of(path) and level(module_of(path)) < 0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path):
    own = module_of(path)
    for module in imports(path) if own else []:
        other = module.removeprefix("pretrain.")
        if module.startswith("pretrain."):
            below = level(other) > level(own) or (
                other.split(".")[0] == own.split(".")[0] and level(other) == level(own)
            )
            assert below, f"{own} imports {other}, which does not lie below it"


def names_in(tree: ast.Module) -> set[str]:
    """Return the functions, classes and constants of a module, and the methods of its classes as Class.method."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            found |= {
                ast.unparse(each) for each in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
            }
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            methods = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{item.name}" for item in methods if isinstance(item, ast.FunctionDef)}
    return found


def test_every_function_of_the_way_of_a_run_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`(\w+/[\w/]+\.py)(?:: ([\w.]+))?`", text)
    assert len([name for _, name in named if name]) > 20
    for file, name in named:
        paths = [
            path
            for path in (SOURCE / "pretrain" / file, SOURCE / file, ROOT / file, ROOT / "src" / file)
            if path.is_file()
        ]
        assert paths, file
        assert not name or name in names_in(ast.parse(paths[0].read_text())), f"{file}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_stay_in_their_rooms(path: Path):
    for module in imports(path):
        rooms = ROOMS.get(module.split(".")[0])
        assert rooms is None or module_of(path).split(".")[0] in rooms, f"{path.name} imports {module}"


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
