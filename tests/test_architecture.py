"""The folders keep to docs/architecture.md: which may import which, no circle, no code in `__init__`."""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from nnunet_ext.methods import METHODS

ROOT = Path(__file__).parents[1]
FOLDERS = {"nnunet_ext": "nnunet_ext", "trainers": "nnunet_ext.trainers", "plans": "nnunet_ext.plans"}
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
METHOD_FOLDERS = {method.network_path.split(".")[1] for method in METHODS.values()}


def rules():
    """Folder -> what its row of the table lets it import; "(nnunetv2)" is for imports inside functions."""
    found = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            here, allowed = (rooms(cell) for cell in (cells[0], cells[2]))
            if "nnU-Net" in cells[2]:
                allowed.add("(nnunetv2)" if "(nnU-Net)" in cells[2] else "nnunetv2")
            found.update(dict.fromkeys(here, allowed))
    return found


def rooms(cell):
    """The folders and modules that a cell names; `<method>` stands for the folder of each method."""
    names = set(re.findall(r"`([\w<>]+)`", cell))
    return names - {"<method>"} | (METHOD_FOLDERS if "<method>" in names else set())


RULES = rules()


def module_name(path):
    """By which name a file is imported."""
    folder, *rest = path.with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


def room(module):
    """The folder or root module that a module belongs to; None for the package itself."""
    return module.split(".")[1] if "." in module else None


MODULES = {module_name(path): path for path in FILES}


def imports(path):
    """`(module, whether at the top of the file)` of every import statement; `from a import b` gives a and a.b."""
    tree = ast.parse((ROOT / path).read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.with_suffix("").parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [package, node.module]))
            names = [module] + [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import a.b", [("a.b", True)]),
        ("from a import b", [("a", True), ("a.b", True)]),
        ("from . import c", [("nnunet_ext.x", True), ("nnunet_ext.x.c", True)]),
        ("from ..y import c", [("nnunet_ext.y", True), ("nnunet_ext.y.c", True)]),
        ("def f():\n    import a", [("a", False)]),
        ("if True:\n    import a", [("a", True)]),
    ],
)
def test_import_statements_are_read_in_all_their_forms(statement, expected, tmp_path, monkeypatch):
    (tmp_path / "nnunet_ext" / "x").mkdir(parents=True)
    (tmp_path / "nnunet_ext" / "x" / "file.py").write_text(statement)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert list(imports(Path("nnunet_ext/x/file.py"))) == expected


# the folders


def test_the_root_holds_five_modules():
    modules = {path.stem for path in FILES if path.parts[0] == "nnunet_ext" and len(path.parts) == 2}
    assert modules == {"__init__", "__main__", "errors", "files", "methods"}


def test_the_page_has_a_row_for_every_folder():
    assert set(RULES) == {name for module in MODULES if (name := room(module)) is not None}


def test_init_files_say_what_a_folder_is_and_hold_no_code():
    for path in FILES:
        if path.name == "__init__.py":
            docstring, *code = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
            assert isinstance(docstring.value.value, str), path
            names = [line.name if isinstance(line, ast.FunctionDef) else line.targets[0].id for line in code]
            assert names == (["__version__", "install"] if path.parts == ("nnunet_ext", "__init__.py") else []), path


# who may import whom


def allowed(here, name, top):
    """Whether a module of folder `here` may import `name`, at its top or inside a function."""
    package = name.split(".")[0]
    if package in ("trainers", "plans", "tests", "benchmarks"):  # under two names a class would exist twice
        return False
    if package == "nnunetv2":
        return "nnunetv2" in RULES[here] or ("(nnunetv2)" in RULES[here] and not top)
    if package != "nnunet_ext" or name in ("nnunet_ext", "nnunet_ext.__version__"):
        return True
    return room(name) in RULES[here] | {here}


@pytest.mark.parametrize("here", sorted(RULES))
def test_a_folder_imports_what_the_page_allows(here):
    paths = [path for module, path in MODULES.items() if room(module) == here]
    assert paths
    assert [f"{p} imports {name}" for p in paths for name, top in imports(p) if not allowed(here, name, top)] == []


def test_the_rules_refuse_what_they_are_there_for():
    assert not allowed("cli", "nnunet_ext.trainers.base", False)
    assert not allowed("e2enet", "nnunet_ext.dints.network", False)
    assert not allowed("e2enet", "nnunetv2.paths", False)
    assert not allowed("cli", "nnunetv2.paths", True)
    assert allowed("cli", "nnunetv2.paths", False)
    assert not allowed("trainers", "nnunet_ext.plans.base", False)
    assert not allowed("plans", "trainers.base", False)


def test_no_circle_of_imports():
    """Imports inside functions count: a circle is one even where it happens to work."""
    graph = defaultdict(set)
    for module, path in MODULES.items():
        graph[module] = {name for name, _ in imports(path) if name in MODULES and name != module}
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    for needed in graph.values():
        needed -= packages  # they hold no code
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
