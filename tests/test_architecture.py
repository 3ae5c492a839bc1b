"""The shape of the source: sizes, exports, no pickle, and one place that asks models questions.

Which room may import which is held by import-linter (pyproject.toml), which `make check` runs.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import transformers

SOURCE = Path(__file__).parents[1] / "src" / "sartor"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 80

LARGE_WITH_REASON: dict[str, str] = {}
"""What may be larger, and why: `trainer/x.py`, or `trainer/x.py:function`.  Keep it short."""

ASKS_MODELS: dict[str, str] = {
    "engine/traits.py": "the place for it: one frozen record of everything the engine needs to know",
    "chat/": "stands alone, so it cannot ask traits; it asks only how long a context is, and about tokens that end",
    "trainer/": "before there are traits: what must not be trained at all (device maps, quantized weights), and names "
    "for card and folder",
}
"""Where `getattr` and `hasattr` look at a model or its configuration, and why."""

DOCUMENTED = {"_exit"}
"""Of names that begin with an underscore, those that their library documents for everybody: `os._exit`."""

_MODELS = {"model", "inner", "config", "decoder", "decoder_module", "head", "base", "module"}
_PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_FILES = sorted(SOURCE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_files_and_functions_stay_small_or_have_a_reason() -> None:
    large, near = {}, set()
    for file in _FILES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            large[name_of(file)] = lines
        if lines > 0.9 * MAX_FILE_LINES:
            near.add(name_of(file))
        for function in functions(tree_of(file)):
            if code_lines(function) > MAX_FUNCTION_LINES:
                large[f"{name_of(file)}:{function.name}"] = code_lines(function)
    without_reason = {name: lines for name, lines in large.items() if name not in LARGE_WITH_REASON}
    assert not without_reason, "split it where it falls apart by itself, or name the reason in LARGE_WITH_REASON"
    assert set(LARGE_WITH_REASON) <= set(large) | near, "these are small again: take them out"


@pytest.mark.parametrize(
    "file", [file for file in _FILES if "__all__" in file.read_text(encoding="utf-8")], ids=name_of
)
def test_all_lists_exactly_the_public_names(file: Path) -> None:
    module = importlib.import_module(
        ".".join(["sartor", *file.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    )
    listed: list[str] = module.__all__
    assert sorted(listed) == listed or sorted(listed, key=str.lower) == listed
    for name in listed:
        assert hasattr(module, name), name
    # a package's public names are what its __init__ imports or defines; a module's are what it defines
    defined = {node.name for node in tree_of(file).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if file.name == "__init__.py":
        for node in tree_of(file).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sartor"):
                defined |= {alias.asname or alias.name for alias in node.names}
    public = {name for name in defined if not name.startswith("_")}
    assert public <= set(listed)


def test_every_public_name_of_the_package_can_be_imported_and_is_listed() -> None:
    import sartor

    assert dir(sartor) == sorted(sartor.__all__)
    assert {"SFTConfig", "SFTTrainer"} <= set(sartor.__all__)
    with pytest.raises(AttributeError, match="SFTTrainerr"):
        sartor.SFTTrainerr  # noqa: B018


def test_nothing_reads_or_writes_pickle() -> None:
    found = []
    for file in _FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Import):
                imported = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {(node.module or "").split(".")[0]}
            else:
                imported = set()
            is_torchs = isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.save", "torch.load"}
            if imported & _PICKLES or is_torchs:
                found.append(f"{name_of(file)}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                found.append(f"{name_of(file)}:{node.value.lineno}")
    assert not found


def test_models_are_asked_questions_in_one_place() -> None:
    asking: dict[str, list[str]] = {}
    for file in _FILES:
        for node in ast.walk(tree_of(file)):
            is_probe = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"getattr", "hasattr"}
            )
            if is_probe and _is_model(node.args[0]):
                place = next((place for place in ASKS_MODELS if name_of(file).startswith(place)), None)
                asking.setdefault(place or f"{name_of(file)}:{node.lineno}", []).append(ast.unparse(node))
    assert asking.keys() <= ASKS_MODELS.keys(), "ask in engine/traits.py, and hand out a field of ModelTraits"
    assert len(asking["trainer/"]) <= 8, "the list of exceptions is meant to stay short"


def _is_model(node: ast.expr) -> bool:
    """Whether an expression looks like a model, or its configuration: its last name says so."""
    if isinstance(node, ast.Call):
        return "get_text_config" in ast.unparse(node) or "get_base_model" in ast.unparse(node)
    last = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return last in _MODELS


def test_there_is_no_module_for_this_and_that() -> None:
    assert not [name_of(file) for file in _FILES if file.stem in {"utils", "util", "helpers", "misc", "common"}]


# --- private functions of libraries ----------------------------------------------------------------------------------


def private_parts(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def defined_names(tree: ast.Module) -> set[str]:
    """Everything private that a module defines: functions, classes, fields, variables, attributes of `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and root_of(node) in ("self", "cls"):
            names.add(node.attr)
    return private_parts(names)


def imported_from_libraries(tree: ast.Module) -> set[str]:
    """The names that a module's imports bind to something that is not ours."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sartor"):
            names |= {alias.asname or alias.name for alias in node.names}
    return names - {"sartor"}


def imported_parts(node: ast.AST) -> list[str]:
    """The parts of what an import of somebody else's names: torch, _dynamo, list_backends."""
    if isinstance(node, ast.Import):
        return [part for alias in node.names for part in alias.name.split(".")]
    if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sartor"):
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    return []


def asked_name(node: ast.AST) -> tuple[str, ast.expr] | None:
    """The attribute that an expression asks for, and of what: `x._y`, `getattr(x, "_y")`."""
    if isinstance(node, ast.Attribute):
        return node.attr, node.value
    is_probe = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1
    if is_probe and node.func.id in {"getattr", "hasattr", "setattr"} and isinstance(node.args[1], ast.Constant):
        return str(node.args[1].value), node.args[0]
    return None


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def privates_of_trainer() -> set[str]:
    """Private methods and attributes of transformers' Trainer and TrainingArguments, which ours inherit."""
    names = set()
    for kind in (transformers.Trainer, transformers.TrainingArguments):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and root_of(node) == "self":
                names.add(node.attr)
    return private_parts(names)


def overridden_privates() -> dict[str, str]:
    """Private names that a class of ours defines, and one that it inherits from, which is not ours, too."""
    found = {}
    for file in _FILES:
        for node in tree_of(file).body:
            if not isinstance(node, ast.ClassDef) or not node.bases:
                continue
            names = private_parts(part.name for part in node.body if isinstance(part, ast.FunctionDef))
            if names:
                module = ".".join(["sartor", *file.relative_to(SOURCE).with_suffix("").parts])
                kind = getattr(importlib.import_module(module.removesuffix(".__init__")), node.name)
                bases = [base for base in kind.__mro__ if not base.__module__.startswith("sartor")]
                found |= {
                    name: f"{name_of(file)}:{node.name}" for name in names if any(name in vars(base) for base in bases)
                }
    return found


def used_privates() -> dict[str, str]:
    """Each private name of a library's that the source uses, and a place where it does."""
    trees = {name_of(file): tree_of(file) for file in _FILES}
    own = {place: defined_names(tree) for place, tree in trees.items()}
    ours, trainers = set().union(*own.values()), privates_of_trainer()
    found = overridden_privates()
    for place, tree in trees.items():
        libraries = imported_from_libraries(tree)
        for node in ast.walk(tree):
            names = set(imported_parts(node))
            if (asked := asked_name(node)) is not None:
                name, owner = asked
                is_of_this_class = ast.unparse(owner) in ("self", "cls") and name in own[place]
                is_trainers = name in trainers and not is_of_this_class
                if name not in ours or is_trainers or root_of(owner) in libraries:
                    names.add(name)
            found |= {name: f"{place}:{getattr(node, 'lineno', 0)}" for name in private_parts(names)}
    return {name: place for name, place in found.items() if name not in DOCUMENTED}


def test_every_private_name_of_a_library_that_is_used_stands_in_the_list() -> None:
    page = (SOURCE.parents[1] / "docs" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Private functions of libraries that are used")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    listed = private_parts(
        part for cell in first_cells for code in re.findall(r"`([^`]+)`", cell) for part in code.split(".")
    )
    used = used_privates()
    missing = {name: place for name, place in used.items() if name not in listed}
    assert not missing, "name each in docs/README.md, with the reason, or do without it"
    assert not listed - used.keys(), "these are used no more: take them out of docs/README.md"
