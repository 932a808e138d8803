"""Do the fast tests notice when the source is broken? Every n-th applicable change of named modules, one at a time.

    python benchmarks/mutation/mutate.py --total 120 --out benchmarks/mutation/results.json

A change is one of a fixed list (a comparison, an operator, a constant, a condition or a call that is left out), and
which are tried follows from their order in the source alone: nobody chooses. Each is made in a copy of the repository,
in which the tests of the module's folder run until one fails; before that they must have passed without any change. The
result is written after each change, and a run that was stopped goes on where it was. What survives is either a gap in
the tests or a change that makes no difference.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[2]
# Folder of the source -> the tests that are meant to notice.
TESTS = {
    "nnunet_ext/files.py": ["tests/test_files.py"],
    "nnunet_ext/methods.py": ["tests/cli", "tests/planning", "tests/test_architecture.py"],
    "nnunet_ext/discovery": ["tests/discovery"],
    "nnunet_ext/layers": ["tests/layers", "tests/trainers", "tests/med_danet/test_phases.py"],
    "nnunet_ext/planning": ["tests/planning", "tests/cli"],
    "nnunet_ext/costs": ["tests/costs", "tests/cli"],
    "nnunet_ext/weights": ["tests/weights", "tests/report/test_training_log.py", "tests/med_danet/test_trainer.py"],
    "nnunet_ext/resampling": ["tests/resampling"],
    "nnunet_ext/prediction": ["tests/prediction", "tests/med_danet/test_prediction.py"],
    "nnunet_ext/report": ["tests/report", "tests/cli"],
    "nnunet_ext/cli": ["tests/cli", "tests/discovery/test_checks.py", "tests/planning"],
    **{f"nnunet_ext/cli/{name}.py": ["tests/challenges"] for name in ("convert", "export", "score")},
    "nnunet_ext/cli/container.py": ["tests/containers", "tests/cli"],
    "nnunet_ext/cli/report.py": ["tests/report", "tests/cli"],
    "nnunet_ext/cli/predict.py": ["tests/prediction", "tests/cli"],
    "nnunet_ext/e2enet": ["tests/e2enet"],
    "nnunet_ext/dints": ["tests/dints"],
    "nnunet_ext/med_danet": ["tests/med_danet"],
    "nnunet_ext/med_tuning": ["tests/med_tuning"],
    "nnunet_ext/challenges": ["tests/challenges"],
    "nnunet_ext/containers": ["tests/containers"],
    "trainers/checks.py": ["tests/trainers"],
    "trainers/resumable.py": ["tests/trainers", "tests/med_danet/test_trainer.py"],
}
COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
           ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
              ast.Mod: ast.Mult, ast.Pow: ast.Mult}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One change: where, what stood there and what stands there instead."""

    file: str
    line: int
    start: int  # offsets into the source
    end: int
    before: str
    after: str


def changes(file: Path) -> list[Change]:
    """Every applicable change of a file, in the order of the source."""
    text = file.read_text(encoding="utf-8")
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line.encode()))
    data = text.encode()
    found = []
    for node in ast.walk(ast.parse(text)):
        after = changed(node)
        if after is not None:
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[node.end_lineno - 1] + node.end_col_offset
            before = data[start:end].decode()
            name = str(file.relative_to(ROOT))
            found.append(Change(name, node.lineno, start, end, before, after))
    return sorted(found, key=lambda change: (change.start, change.end))


def changed(node: ast.AST) -> str | None:
    """What stands for a node in its change; None where no change applies."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARE:
        return ast.unparse(ast.Compare(node.left, [COMPARE[type(node.ops[0])]()], node.comparators))
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text(node):
        return f"({ast.unparse(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))})"
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return f"({ast.unparse(ast.BoolOp(other, node.values))})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        return repr(not node.value if type(node.value) is bool else node.value + 1)
    if isinstance(node, ast.IfExp):
        return f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return "pass"
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        return "return None"
    return None


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, (ast.JoinedStr, ast.Constant)) and not _is_number(n) for n in (node.left, node.right))


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def tests_of(file: str) -> list[str]:
    """The tests of a file: those of the longest path that names it."""
    names = [name for name in TESTS if file == name or file.startswith(f"{name}/")]
    return TESTS[max(names, key=len)]


def copied(folder: Path) -> Path:
    """The repository as it is installed, with its tests."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("nnunet_ext", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("trainers", "plans"):
        shutil.copytree(ROOT / name, folder / "nnunet_ext" / name, ignore=ignored)
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "setup.py", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def first_failure(tests: list[str], folder: Path, timeout: int) -> str | None:
    """The first of the tests that fails in a copy of the repository; None where all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
               "-o", "addopts=--import-mode=importlib", "-m", "not slow", *tests]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "timeout"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    named = lines[0].split(" - ")[0] if lines else f"exit code {done.returncode}"
    return named if done.returncode else None


def tried(change: Change, folder: Path, timeout: int) -> dict:
    """Whether a test fails with the change, which one, and after how many seconds."""
    inside = change.file if change.file.startswith("nnunet_ext/") else f"nnunet_ext/{change.file}"
    target = folder / inside
    original = target.read_bytes()  # the copy's: the repository may have gone on
    start = time.monotonic()
    try:
        target.write_bytes(original[: change.start] + change.after.encode() + original[change.end :])
        by = first_failure(tests_of(change.file), folder, timeout)
    finally:
        target.write_bytes(original)
    return {**asdict(change), "killed": by is not None, "by": by, "seconds": round(time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--modules", nargs="+", default=list(TESTS), help="files or folders (default: all that have tests)"
    )
    parser.add_argument("--total", type=int, default=120, help="about how many changes (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=600, help="seconds for the tests of one change")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    files = sorted(
        {
            file
            for name in args.modules
            for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
        }
    )
    everything = [change for file in files for change in changes(file)]
    step = max(1, len(everything) // args.total)
    chosen = everything[step // 2 :: step]
    results = json.loads(args.out.read_text(encoding="utf-8"))["changes"] if args.out.is_file() else []
    known = {(r["file"], r["start"], r["end"], r["after"]) for r in results}
    left = [c for c in chosen if (c.file, c.start, c.end, c.after) not in known]
    print(
        f"{len(everything)} applicable changes in {len(files)} files; every {step}th: {len(chosen)}, {len(left)} to try"
    )

    with tempfile.TemporaryDirectory() as place:
        folders: Queue[Path] = Queue()
        for number in range(args.jobs):
            folders.put(copied(Path(place, str(number))))

        def unchanged(tests: tuple[str, ...]) -> str | None:
            folder = folders.get()
            try:
                failed = first_failure(list(tests), folder, args.timeout)
            finally:
                folders.put(folder)
            print(f"unchanged: {' '.join(tests)}: {failed or 'passed'}", flush=True)
            return failed

        def one(change: Change) -> None:
            folder = folders.get()
            try:
                result = tried(change, folder, args.timeout)
            finally:
                folders.put(folder)
            results.append(result)
            killed = sum(r["killed"] for r in results)
            mark = "killed  " if result["killed"] else "SURVIVED"
            print(f"{mark} {change.file}:{change.line}  {change.before[:50]!r} -> {change.after[:50]!r}", flush=True)
            summary = {"modules": args.modules, "applicable": len(everything), "step": step, "tried": len(results),
                       "killed": killed, "share": round(killed / len(results), 3)}  # fmt: skip
            ordered = sorted(results, key=lambda r: (r["file"], r["start"], r["end"]))
            args.out.write_text(json.dumps({**summary, "changes": ordered}, indent=1) + "\n", encoding="utf-8")

        with ThreadPoolExecutor(args.jobs) as pool:
            # A test that fails anyway would count as one that notices every change.
            if any(list(pool.map(unchanged, sorted({tuple(tests_of(change.file)) for change in left})))):
                sys.exit("tests fail without any change: mend them first")
            list(pool.map(one, left))
    print(f"{sum(r['killed'] for r in results)} of {len(results)} killed")


if __name__ == "__main__":
    main()
