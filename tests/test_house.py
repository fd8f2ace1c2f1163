"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from small import SHORT

ROOMS = ("code", "dataloaders", "networks", "utils", "tests", "benchmarks")
PYTHON = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
TRAINING = sorted((ROOT / "code").glob("train_*.py"))
SCRIPTS = [path for path in sorted((ROOT / "code").glob("*.py")) if path.name != "_root.py"]

# From the ground floor up; no import runs upwards. A file is named by its module, a room by its
# package. (`utils/reporting/scripts.py` loads training scripts by path, to ask them for options.)
LAYERS = [
    ("the ground floor", "errors files distributed device checkpoint environment command progress"),
    ("data and networks", "dataloaders networks"),
    (
        "what methods are made of",
        "losses schedules perturbations uncertainty pseudo_labels metrics inference slabs trained "
        "batchnorm",
    ),
    ("drawing", "figures"),
    ("one verb each", "training evaluation preparation"),
    ("results read back", "reporting"),
    ("the scripts", "code"),
]
ROOMS_APART = (1, 4)  # layers whose rooms do not know each other
OPERATIONS = "utils.ops"  # on the ground floor too, and a room


def module_name(path):
    """`utils/training/run.py` as `utils.training.run`, a package's `__init__.py` as the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PYTHON if path.parts[len(ROOT.parts)] != "tests"}


def place(module):
    """Number of a module's layer, and its room within it."""
    top, *rest = module.split(".")
    name = rest[0] if top == "utils" and rest else top
    if module.startswith(OPERATIONS):
        return 0, "ops"
    for number, (_, names) in enumerate(LAYERS):
        if name in names.split():
            return number, name
    raise AssertionError(f"{module} belongs to no layer: name it in LAYERS")


def imports(path, lazy=True):
    """Modules of this repository that a file imports; without `lazy` only while it is imported."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def product():
    return {
        name: path
        for name, path in MODULES.items()
        if not name.startswith("benchmarks") and name != "utils"
    }


def test_no_import_runs_upwards():
    wrong = []
    for name, path in product().items():
        layer, room = place(name)
        for imported in imports(path):
            if imported in ("utils", "code._root"):
                continue
            below, other = place(imported)
            if below > layer:
                wrong.append(f"{name} imports {imported}, which is above it")
            elif below == layer and other != room and layer in ROOMS_APART:
                wrong.append(f"{name} imports {imported}, which serves another verb")
    assert not wrong


def test_training_draws_nothing_and_scripts_stand_alone():
    wrong = []
    for name, path in product().items():
        for imported in imports(path):
            if name.startswith("utils.training") and imported.startswith("utils.figures"):
                wrong.append(f"{name} imports {imported}")
    for path in SCRIPTS:
        others = {other.stem for other in SCRIPTS} - {path.stem}
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wrong += [f"{path.name} imports {a.name}" for a in node.names if a.name in others]
            elif isinstance(node, ast.ImportFrom) and node.module in others:
                wrong.append(f"{path.name} imports {node.module}")
    assert not wrong


def test_no_import_goes_in_circles():
    below = {name: set(imports(path, lazy=False)) for name, path in product().items()}
    finished, path = set(), []

    def visit(name):
        assert name not in path, f"{' imports '.join([*path[path.index(name) :], name])}"
        if name in finished:
            return
        path.append(name)
        for imported in below.get(name, ()):
            visit(imported)
        finished.add(path.pop())

    for name in below:
        visit(name)


@pytest.mark.parametrize(
    "statement",
    [
        "import utils.training.run",
        "from dataloaders import dataset_class; dataset_class('LA'); dataset_class('ACDC')",
    ],
)
def test_training_loads_nothing_that_it_does_not_need(statement):
    heavy = "{'matplotlib', 'SimpleITK', 'safetensors', 'skimage', 'medpy'}"
    probe = f"import sys; {statement}; print(*{heavy} & set(sys.modules))"
    command = [sys.executable, "-c", probe]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == []


def test_code_is_no_package():
    """With an `__init__.py` it would shadow the standard library's `code`, which `pdb` imports."""
    assert not (ROOT / "code" / "__init__.py").exists()
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1]); import code, pdb; "
        "print(code.InteractiveConsole.__name__)"
    )
    command = [sys.executable, "-c", probe, ROOT]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "InteractiveConsole"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_every_script_has_one_entry(path):
    functions = {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions.get("parse") == ["argv"]
    assert functions.get("main") == ["argv"]
    assert path.read_text().rstrip().endswith('if __name__ == "__main__":\n    command.run(main)')


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_a_training_script_explains_itself_and_never_names_the_test_list(path):
    text = path.read_text()
    assert not re.search(r"test\.(list|txt)|split=.test|\"test\"", text)
    assert text.startswith('"""')
    assert "python code/" + path.name in text.split('"""')[1]


def test_every_training_script_has_its_shortest_run():
    """`SHORT` is what the tests of all methods run over, such as that none opens a test list."""
    assert SHORT.keys() == {path.stem for path in TRAINING}


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_device_is_hard_wired(path):
    if path.name != "test_house.py":
        assert ".cuda(" not in path.read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_help_works(path, script):
    done = script(path.name, "--help")
    assert done.returncode == 0
    assert f"usage: {path.name}" in done.stdout
