"""The shape of the source: sizes, exports, no pickle, and one place that asks models questions.

Which room may import which is held by import-linter (pyproject.toml), which `make check` runs.
"""

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sartor"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 80

LARGE_WITH_REASON: dict[str, str] = {}
"""What may be larger, and why: `hf/x.py`, or `hf/x.py:function`.  Keep it short."""

ASKS_MODELS: dict[str, str] = {
    "engine/traits.py": "the place for it: one frozen record of everything the engine needs to know",
    "compat.py": "only for what is private there and may be missing",
    "chat/": "stands alone, so it cannot ask traits; it asks only how long a context is, and about tokens that end",
    "run/loading.py": "before there is a model: how long a context its configuration allows",
    "hf/": "before there are traits: what must not be trained at all (device maps, quantized weights), and names "
    "for card and folder",
}
"""Where `getattr` and `hasattr` look at a model or its configuration, and why."""

ASKS_DEVICES: dict[str, str] = {
    "device.py": "the place for it: a row of facts for each kind, and what torch names otherwise for each",
}
"""Where kinds of devices are compared, or torch's modules for one kind are used, and why."""

SAYS_VERSIONS: dict[str, str] = {
    "version.py": "where Sartor's own is written down",
    "cli/main.py": "`sartor --version` prints it",
    "cli/env.py": "prints them all for a bug report",
    "run/fingerprints.py": "a checkpoint says what wrote it, so that resuming can say what is another now",
    "report/card.py": "the card says what a model was trained with",
    "data/encoding/keys.py": "prepared data are found again under a key of what prepared them",
    "demo/recipe.py": "the demo's base model says what it was made with",
}
"""Where versions are written or printed; nothing is decided by comparing them.  `compat.py` asks the thing itself."""

PRIVATE_ELSEWHERE: dict[str, str] = {
    "torch.utils._python_dispatch": "torch's notes on extending it document TorchDispatchMode under this name",
    "torch._subclasses.fake_tensor": "torch's notes on fake tensors document FakeTensorMode under this name",
}
"""What has a private name and is used outside of compat.py all the same, and why."""

_LIBRARIES = {"torch", "transformers", "datasets", "peft", "accelerate", "huggingface_hub", "tokenizers", "jinja2"}
_OF_LIBRARIES = {"trainer", "layer", "model", "module", "optimizer", "schedule", "scheduler", "tensor"}
"""What objects of libraries are called."""
_VERSIONS = {"packaging", "pkg_resources", "importlib.metadata", "importlib_metadata"}
_KINDS = {"cpu", "cuda", "mps", "xpu", "meta", "hpu", "npu"}
_KIND_MODULES = {"cpu", "cuda", "mps", "xpu", "backends", "accelerator", "version"}
_MODELS = {"model", "inner", "config", "decoder", "decoder_module", "head", "base", "module"}
_PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_FILES = sorted(SOURCE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


@cache
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
    assert len(asking["hf/"]) <= 8, "the list of exceptions is meant to stay short"


def _is_model(node: ast.expr) -> bool:
    """Whether an expression looks like a model, or its configuration: its last name says so."""
    if isinstance(node, ast.Call):
        return "get_text_config" in ast.unparse(node) or "get_base_model" in ast.unparse(node)
    last = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return last in _MODELS


def test_devices_are_asked_for_their_kind_in_one_place() -> None:
    asking = {
        f"{name_of(file)}:{getattr(node, 'lineno', 0)}": ast.unparse(node)
        for file in _FILES
        if name_of(file) not in ASKS_DEVICES
        for node in ast.walk(tree_of(file))
        if _asks_for_a_kind(node)
    }
    assert not asking, "ask sartor.device: give `Kind` the fact that the decision rests on, or add a function there"


@pytest.mark.parametrize(
    "code",
    [
        'device.type == "cuda"',
        "model.device.type != other.type",
        'device.type in ("cpu", "mps")',
        '"xpu" == name',
        'plan.device.startswith("cuda")',
        'plan.device.partition(":")[0] == "cpu"',
        "parameter.is_cuda",
        "torch.cuda.is_available()",
        "torch.mps.empty_cache()",
        "torch.backends.mps.is_available()",
        "torch.cpu.get_capabilities()",
        "from torch import cuda",
        "import torch.backends.cuda",
        'open("/proc/cpuinfo")',
        'match device.type:\n    case "cuda":\n        pass',
        '{"cpu": 1, "cuda": 2}[device.type]',
    ],
)
def test_questions_about_kinds_are_recognised(code: str) -> None:
    assert any(_asks_for_a_kind(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["torch.autocast(device.type, dtype)", 'load(path, device="cpu")', "column.type", "kind_of(device).is_host"],
)
def test_handing_a_device_on_is_no_question(code: str) -> None:
    assert not any(_asks_for_a_kind(node) for node in ast.walk(ast.parse(code)))


def _asks_for_a_kind(node: ast.AST) -> bool:
    """Whether it compares or looks up a device's kind, asks a tensor for it, or uses torch's module for one kind."""
    match node:
        case ast.Compare(left=left, comparators=others):
            return any(_is_a_kind(side) for side in (left, *others))
        case ast.Match(subject=subject):
            return _is_a_kind(subject)
        case ast.Subscript(slice=key):
            return isinstance(key, ast.Attribute) and _is_a_kind(key)
        case ast.Call(func=ast.Attribute(attr="startswith"), args=[start, *_]):
            return _is_a_kind(start)
        case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
            return attribute in _KIND_MODULES
        case ast.Attribute(value=value, attr="is_cuda" | "is_cpu" | "is_mps" | "is_xpu" | "is_meta"):
            return not (isinstance(value, ast.Name) and value.id == "self")
        case ast.ImportFrom(module="torch", names=names):
            return any(alias.name in _KIND_MODULES for alias in names)
        case ast.ImportFrom(module=str(module)):
            return _is_of_a_kind(module)
        case ast.Import(names=names):
            return any(_is_of_a_kind(alias.name) for alias in names)
        case ast.Constant(value=str(text)):
            return text.endswith("/cpuinfo")
    return False


def _is_a_kind(node: ast.expr) -> bool:
    """Whether an expression is a device's type, or the name of a kind, or several of them."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_is_a_kind(element) for element in node.elts)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value in _KINDS
    return isinstance(node, ast.Attribute) and node.attr == "type"


def _is_of_a_kind(module: str) -> bool:
    first, _, rest = module.partition(".")
    return first == "torch" and rest.partition(".")[0] in _KIND_MODULES


def test_versions_are_told_and_never_compared() -> None:
    told, decided = {}, {}
    for file in _FILES:
        if name_of(file) == "compat.py":
            continue
        for node in ast.walk(tree_of(file)):
            where = f"{name_of(file)}:{getattr(node, 'lineno', 0)}"
            if _is_a_version(node) and name_of(file) not in SAYS_VERSIONS:
                told[where] = ast.unparse(node)
            if _decides_by_version(node) and not (name_of(file) == "cli/env.py" and isinstance(node, ast.Try)):
                decided[where] = ast.unparse(node)
    assert not told, "versions are for people: name the place in SAYS_VERSIONS, or ask the thing itself in compat.py"
    assert not decided, "what differs between versions is asked in compat.py"


@pytest.mark.parametrize(
    "code",
    [
        'version("torch") >= "2.13"',
        "torch.__version__.startswith('2.') and transformers.__version__ < '5'",
        "Version(version('peft')) < Version('1')",
        "sys.version_info >= (3, 12)",
        'hasattr(torch, "accelerator")',
        'getattr(transformers.utils, "is_x", None)',
        "try:\n    from transformers import x\nexcept ImportError:\n    x = None",
    ],
)
def test_decisions_by_version_are_recognised(code: str) -> None:
    assert any(_decides_by_version(node) for node in ast.walk(ast.parse(code)))


def _is_a_version(node: ast.AST) -> bool:
    """Whether it is, or imports what is, the version of something."""
    match node:
        case ast.Attribute(attr="__version__" | "version_info") | ast.Name(id="__version__"):
            return True
        case ast.Call(func=ast.Name(id="version") | ast.Attribute(value=ast.Name(id="metadata"), attr="version")):
            return True
        case ast.Import(names=names):
            return any(_is_or_is_in(alias.name, _VERSIONS) for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            return any(_is_or_is_in(name, _VERSIONS) for name in (module, *(f"{module}.{a.name}" for a in names)))
    return False


def _decides_by_version(node: ast.AST) -> bool:
    """Whether it compares a version, looks whether a library has a name, or does without a library's name."""
    match node:
        case ast.Compare():
            return any(_is_a_version(part) for part in ast.walk(node))
        case ast.Call(func=ast.Name(id=asks), args=[owner, *rest]) if asks == ("hasattr", "getattr")[len(rest) > 1]:
            return ast.unparse(owner).partition(".")[0] in _LIBRARIES
        case ast.Try(body=body, handlers=handlers):
            caught = {name for one in handlers if one.type is not None for name in _names(one.type)}
            imported = [name for part in body for name in _imported(part)]
            return bool(caught & {"ImportError", "ModuleNotFoundError", "AttributeError"}) and any(
                _is_or_is_in(name, _LIBRARIES) for name in imported
            )
    return False


def _names(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement, or one within it, imports."""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            found += [alias.name for alias in part.names]
        elif isinstance(part, ast.ImportFrom) and part.module is not None:
            found.append(part.module)
    return found


def _is_or_is_in(module: str, packages: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def test_few_take_a_whole_session() -> None:
    from dataclasses import fields

    from sartor.run.session import Session

    assert len(fields(Session)) <= 12
    taking = [
        f"{name_of(file)}:{node.name}"
        for file in _FILES
        if not name_of(file).startswith("hf/") and name_of(file) != "run/session.py"
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("Session" in ast.unparse(part.annotation) for part in _arguments(node) if part.annotation is not None)
    ]
    assert len(taking) <= 10, "take what is needed of it, not the whole"


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def test_private_functions_of_libraries_are_called_in_one_place_and_listed() -> None:
    own = {name for file in _FILES if file.name != "compat.py" for name in _defined(tree_of(file))}
    table = (SOURCE.parents[1] / "docs" / "README.md").read_text(encoding="utf-8")
    elsewhere, unlisted = {}, set()
    for file in _FILES:
        for node in ast.walk(tree_of(file)):
            for name in _private_names(node, own):
                is_trainers = name_of(file).startswith("hf/") and ast.unparse(node).startswith("trainer.")
                is_trainers |= name_of(file).startswith("hf/") and ast.unparse(node).startswith("self.")
                if name_of(file) != "compat.py" and not is_trainers and name not in PRIVATE_ELSEWHERE:
                    elsewhere[f"{name_of(file)}:{getattr(node, 'lineno', 0)}"] = name
                if name.rpartition(".")[2] not in table and name not in table:
                    unlisted.add(name)
    assert not elsewhere, "give it an accessor in compat.py that says what happens where it is missing"
    assert not unlisted, "the table of private functions in docs/README.md lacks them"


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names that a file defines or assigns to on itself."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.Attribute(value=ast.Name(id=owner), attr=name, ctx=ast.Store()) if owner not in _OF_LIBRARIES:
                yield name


def _private_names(node: ast.AST, own: set[str]) -> Iterator[str]:
    """Names beginning with one underscore that a node takes from elsewhere than this package."""
    match node:
        case ast.Attribute(value=ast.Name(id="os" | "_aten")):
            return  # `os._exit` is documented; operators of torch are called by their names
        case ast.Attribute(attr=name) if _is_private(name) and name not in own:
            yield name
        case ast.keyword(arg=str(name)) if _is_private(name) and name not in own:
            yield name
        case ast.ImportFrom(module=str(module), names=names) if not module.startswith("sartor"):
            if any(_is_private(part) for part in module.split(".")):
                yield module
            else:
                yield from (alias.name for alias in names if _is_private(alias.name))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_there_is_no_module_for_this_and_that() -> None:
    assert not [name_of(file) for file in _FILES if file.stem in {"utils", "util", "helpers", "misc", "common"}]
