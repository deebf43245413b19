"""The order of the house: who may import whom, and what must stay free of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "relume"

# Each module may import only those before it. A package counts as one module.
ORDER = (
    "errors",
    "activations",
    "theory",
    "recording",
    "journal",
    "symptoms",
    "timeline",
    "suspicions",
    "diagnosis",
    "verdicts",
    "actions",
    "alarms",
    "pace",
    "report",
    "nn",
    "randomness",
    "nested",
    "attributes",
    "sites",
    "reach",
    "probe",
    "standstill",
    "targets",
    "proof",
    "ranks",
    "kept",
    "recorder",
    "wiring",
    "surgery",
    "adoption",
    "rewriting",
    "grafts",
    "initialise",
    "forecast",
    "training",
    "changes",
    "snapshots",
    "interventions",
    "remedies",
    "trial",
    "tryout",
    "autopilot",
    "watch",
    "checkup",
    "prune",
    "heal",
    "demo",
    "claims",
    "explorer",
    "integrations",
    "loading",
    "cli",
)
FREE_OF_TORCH = ORDER[: ORDER.index("nn")]

# `import relume`, or a public name from it, reaches up to here.
PUBLIC_FACE = "explorer"

PRESENT = [name for name in ORDER if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name / "__init__.py").exists()]


def modules_imported(source: str, path: tuple[str, ...], known: set[str]) -> Iterator[tuple[int, str]]:
    """The relume modules that a file imports, wherever in the file, with line numbers.

    `path` is where the file lies in the package, such as ("trial", "local.py"). Imports under TYPE_CHECKING count too:
    a type that must be known is a dependency.
    """
    package = ("relume", *path[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            targets = [(*base, alias.name) for alias in node.names]
        else:
            continue
        for root, *inside in targets:
            if root != "relume":
                continue
            # `from relume import Report` takes a name from the public face, `from relume import probe` a module.
            from_face = isinstance(node, ast.ImportFrom) and len(inside) == 1 and inside[0] not in known
            yield node.lineno, inside[0] if inside and not from_face else PUBLIC_FACE


def violations(root: Path) -> list[str]:
    """What breaks the order in the package at `root`, one sentence each."""
    found = []
    present = {path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py"}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).parts
        if path in {("__init__.py",), ("__main__.py",)}:
            continue
        where = "src/relume/" + "/".join(path)
        importer = path[0].removesuffix(".py")
        if "utils.py" in path:
            found.append(f"{where}: there is no utils.py; name the module for what it holds.")
            continue
        if importer not in ORDER:
            found.append(f"{where}: {importer!r} has no place in the order; add it to ORDER in tests/test_imports.py.")
            continue
        for line, imported in modules_imported(file.read_text(encoding="utf-8"), path, present | set(ORDER)):
            if imported == importer:
                continue
            if imported not in ORDER:
                found.append(f"{where}:{line}: imports {imported!r}, which has no place in the order.")
            elif ORDER.index(imported) > ORDER.index(importer):
                found.append(f"{where}:{line}: {importer!r} may not import {imported!r}, which comes later.")
    return found


def run_python(code: str) -> None:
    """Run `code` in a fresh interpreter, and fail with its last words."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_imports_go_down_the_list_only():
    """No module imports one that comes later, and every module has its place."""
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("probe.py", "from relume.trial import run", "'probe' may not import 'trial'"),
        ("probe.py", "from relume import trial", "'probe' may not import 'trial'"),
        ("probe.py", "import relume.trial.local as t", "'probe' may not import 'trial'"),
        ("probe.py", "from . import trial", "'probe' may not import 'trial'"),
        ("probe.py", "from .trial import run", "'probe' may not import 'trial'"),
        ("probe.py", "def f():\n    from relume import trial", ":2: 'probe' may not import 'trial'"),
        ("probe.py", "import relume", "'probe' may not import 'explorer'"),
        ("probe.py", "from relume import Report", "'probe' may not import 'explorer'"),
        ("trial/local.py", "from ..claims import html", "'trial' may not import 'claims'"),
        ("trial/local.py", "from relume import helpers", "imports 'helpers', which has no place"),
        ("helpers.py", "", "'helpers' has no place in the order; add it"),
        ("trial/utils.py", "", "there is no utils.py"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str, message: str):
    """Each way to import the wrong module is seen, in a small package that has the fault by construction."""
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(source, encoding="utf-8")
    if "helpers" in source:
        (tmp_path / "helpers.py").touch()

    assert any(message in violation for violation in violations(tmp_path)), violations(tmp_path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("probe.py", "import torch\nfrom relume.errors import RelumeError\nfrom .sites import Site"),
        ("trial/local.py", "from . import statistics\nfrom .statistics import mean\nfrom ..errors import RelumeError"),
        ("trial/local.py", "from relume import trial, errors\nimport relume.trial.statistics"),
        ("loading.py", "import relume\nfrom relume import Training, diagnose"),
        ("__init__.py", "from relume.cli import main"),
    ],
)
def test_what_follows_the_order_passes(tmp_path: Path, path: str, source: str):
    """The healthy twins of the planted faults pass."""
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(source, encoding="utf-8")

    assert violations(tmp_path) == []


@pytest.mark.parametrize("module", ["relume", *(f"relume.{name}" for name in FREE_OF_TORCH if name in PRESENT)])
def test_import_loads_no_torch(module: str):
    """`import relume`, and the modules that know and judge, work where there is no torch."""
    run_python(f"import sys, {module}; assert 'torch' not in sys.modules, '{module} loads torch'")


@pytest.mark.skipif("cli" not in PRESENT, reason="there is no command line yet")
def test_help_loads_no_torch():
    """`relume --help` answers without torch."""
    run_python(
        "import sys; from relume.cli import main; main(['--help'], standalone_mode=False);"
        "assert 'torch' not in sys.modules, 'relume --help loads torch'"
    )


def test_public_names_are_what_is_importable():
    """`__all__` has no doubles, each name in it can be had, and nothing public is left out of it."""
    run_python(
        "import relume, types\n"
        "names = getattr(relume, '__all__', ())\n"
        "assert len(names) == len(set(names)), 'a name is twice in __all__'\n"
        "for name in names: getattr(relume, name)\n"
        "public = {n for n in dir(relume) if n[0] != '_' and not isinstance(getattr(relume, n), types.ModuleType)}\n"
        "assert public <= {*names, 'annotations'}, f'not in __all__: {public - set(names)}'\n"
    )


@pytest.mark.skipif(find_spec("relume") is None, reason="there is no package yet")
def test_public_names_survive_the_import_of_submodules():
    """`relume.watch` stays the function after `relume.watch`, the module of the same name, was imported."""
    imports = "".join(f"import relume.{name}\n" for name in PRESENT)
    check = (
        "import relume, types\n"
        "for name in getattr(relume, '__all__', ()):\n"
        "    assert not isinstance(getattr(relume, name), types.ModuleType), f'relume.{name} became the module'\n"
    )
    run_python(imports + check)
    run_python(check + imports + check)
