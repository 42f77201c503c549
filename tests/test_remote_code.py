"""What whoever passes trust_remote_code=True lets run: read from the syntax trees of the eight files."""

import ast
import re

import pytest
from conftest import ROOT

FILES = tuple(
    f"{name}_nula.py"
    for name in ("configuration", "modeling", "image_processing", "pipeline", "batching", "reading", "rgb", "smoothing")
)
PACKAGES = {"torch", "transformers", "numpy", "PIL"}  # that may be imported whole
FROM_PACKAGES = {  # module to what is imported from it; anything else is refused
    "PIL": {"Image", "ImageCms"},
    "torch": {"nn"},
    "torch.func": {"functional_call"},
    "torch.nn": {"functional"},
    "torch.utils.data": {"DataLoader", "Dataset", "IterableDataset"},
    "transformers": {"ImageClassificationPipeline", "PreTrainedModel", "PretrainedConfig"},
    "transformers.image_processing_utils": {"BaseImageProcessor", "BatchFeature"},
    "transformers.modeling_outputs": {
        "BaseModelOutputWithPoolingAndNoAttention",
        "ImageClassifierOutputWithNoAttention",
    },
}
OPTIONAL = {("certify", "scipy")}  # function and what it alone imports, in a try, so that nothing else needs it
STANDARD = {  # module of the standard library to what is used of it; anything else of it is refused
    "base64": {"b64encode"},
    "collections": {"deque"},
    "collections.abc": {"Callable", "Iterable", "Iterator", "Mapping", "Sequence", "Set"},
    "concurrent.futures": {"Future", "ThreadPoolExecutor", "wait"},
    "contextlib": {"ExitStack", "contextmanager", "suppress"},
    "contextvars": {"copy_context"},
    "dataclasses": {"dataclass", "fields"},
    "functools": {"lru_cache"},
    "inspect": {"iscoroutinefunction"},
    "io": {"BytesIO"},
    "numbers": {"Integral", "Real"},
    "os": {"PathLike", "cpu_count", "fspath", "getpid", "sched_getaffinity"},
    "os.path": {"realpath"},
    "pathlib": {"Path"},
    "queue": {"Empty", "Queue"},
    "struct": {"error"},
    "threading": {"Condition", "Lock", "Thread"},
    "time": {"monotonic"},
    "typing": {"TYPE_CHECKING", "Any", "TypeVar"},
    "urllib.parse": {"quote", "unquote_to_bytes", "urlsplit"},
    "urllib.request": {"Request", "urlopen"},
    "warnings": {"warn"},
    "zlib": {"MAX_WBITS", "decompressobj"},
}
MODULES = {*STANDARD, *PACKAGES, "np", "F"}
SIBLINGS = {"." + file.removesuffix(".py") for file in FILES}
ALIASES = {"numpy": "np"}  # modules that may be imported under another name
# PIL decodes an open image; a base class is called by its subclass; a type is named in a message.
HARMLESS = {
    ("image", "load"),
    ("super()", "__init__"),
    ("super()", "from_pretrained"),
    ("", "__name__"),
}
FORBIDDEN = {"eval", "exec", "compile", "__import__", "globals", "breakpoint", "input"}
DANGEROUS = {"os", "sys", "subprocess", "pickle", "socket", "requests", "importlib", "builtins", "shutil", "ctypes"}
READING = re.compile(
    r"load(s|txt)?|load_\w+|from_pretrained|save_pretrained|push_to_hub|cached_file|\w*download\w*|exec\w*|environ|getenv|save(z|z_compressed|txt)?|(from|to)file|genfromtxt|memmap|hub|write_(bytes|text)|unlink|rmdir|rename"
    r"|touch|mkdir|chmod|symlink_to|hardlink_to|multiprocessing|spawn|ctypes|system|popen|__\w+__"
)
OPENING = {"open", "urlopen", "urlretrieve", "read_bytes", "read_text"}


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def without_optional(tree: ast.Module) -> ast.Module:
    """`tree` less the imports of OPTIONAL, each in its function and the body of a try that catches ImportError."""
    for function in ast.walk(tree):
        for attempt in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if isinstance(attempt, ast.Try) and any(ast.unparse(h.type) == "ImportError" for h in attempt.handlers):
                attempt.body = [
                    node
                    for node in attempt.body
                    if not isinstance(node, ast.ImportFrom)
                    or (function.name, node.module.partition(".")[0]) not in OPTIONAL
                ]
    return tree


def dotted(node: ast.AST) -> str:
    """a.b.c of the expression a.b.c, "" of anything else."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree: ast.Module) -> set[str]:
    """What is imported that may not be: top-level names, or module.name of the standard library."""
    found = set()
    for node in ast.walk(without_optional(tree)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names if alias.asname is None or alias.name in ALIASES}
            found |= {name for name in names if name not in PACKAGES and name not in STANDARD}
            found |= {alias.name for alias in node.names} - names
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in STANDARD:
                found |= {f"{module}.{alias.name}" for alias in node.names if alias.name not in STANDARD[module]}
            elif module not in SIBLINGS:
                known = FROM_PACKAGES.get(module, set())
                found |= {f"{module}.{alias.name}" for alias in node.names if alias.name not in known}
    return found


def forbidden(tree: ast.Module) -> set[str]:
    """What is used that evaluates code, reads the environment or starts something, or reads and writes files."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN:
            found.add(node.id)
        elif isinstance(node, ast.Call) and dotted(node.func) == "getattr" and dotted(node.args[0]) in MODULES:
            found.add("getattr")
        elif isinstance(node, ast.Attribute):
            owner = "super()" if ast.unparse(node.value) == "super()" else dotted(node.value)
            if {*owner.split("."), node.attr} & DANGEROUS and owner not in STANDARD:
                found.add(f"{owner}.{node.attr}")
            if owner in STANDARD and node.attr not in STANDARD[owner] and f"{owner}.{node.attr}" not in STANDARD:
                found.add(f"{owner}.{node.attr}")
            if READING.fullmatch(node.attr) and (owner, node.attr) not in HARMLESS:
                found.add(f"{owner}.{node.attr}")
    return found


def openers(tree: ast.Module) -> set[str]:
    """The functions, by name, in which something is opened; "" for the module's own level."""
    found = set()

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in OPENING:
                found.add(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "")
    return found


def test_all_code_that_travels_is_read(payload):
    assert {file.name for file in payload.rglob("*.py")} == set(FILES)
    assert {file.name for file in ROOT.glob("*_nula.py")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_itself_whatever_its_imports_import(name):
    """transformers 5.3 copies from a folder no other files, and then looks for all of them."""

    def siblings(file: str) -> set[str]:
        nodes = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.ImportFrom) and node.level]
        return {f"{node.module}.py" for node in nodes}

    assert set().union(*map(siblings, siblings(name))) <= siblings(name)


@pytest.mark.parametrize("name", FILES)
def test_only_known_packages_and_each_other_are_imported(name):
    assert imported(tree_of(name)) == set()


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_evaluated_started_or_stored(name):
    assert forbidden(tree_of(name)) == set()


def test_only_the_reading_of_an_image_opens_anything():
    found = {name: openers(tree_of(name)) for name in FILES}
    expected = {"open_image", "_content", "fetch"}
    assert found == {name: expected if name == "reading_nula.py" else set() for name in FILES}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from subprocess import run",
        "import requests",
        "from .other import thing",
        "import http.client",
        "import os as quiet",
        "import types",
        "from os import system as quiet",
        "from concurrent.futures import ProcessPoolExecutor",
        "from urllib.request import URLopener",
        "from scipy.stats import norm",
        "from torch import load",
        "from PIL.Image import open as show",
        "from transformers.utils import cached_file",
        "from torch.hub import load_state_dict_from_url",
        "from torch.utils.cpp_extension import load_inline",
        "from transformers.utils.hub import os as quiet",
        "import torch.utils.cpp_extension",
        "def certify():\n    from scipy.stats import norm",
        "def other():\n    try:\n        from scipy.stats import norm\n    except ImportError:\n        raise",
    ],
)
def test_a_forbidden_import_is_seen(code):
    assert imported(ast.parse(code))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("eval('1')", "eval"),
        ("os.environ['HOME']", "os.environ"),
        ("os.execv(path, [])", "os.execv"),
        ("torch.load(file)", "torch.load"),
        ("AutoModel.from_pretrained('a/b', trust_remote_code=True)", "AutoModel.from_pretrained"),
        ("model.save_pretrained(x)", "model.save_pretrained"),
        ("model.push_to_hub('a/b')", "model.push_to_hub"),
        ("torch.os", "torch.os"),
        ("torch.hub", "torch.hub"),
        ("np.savez(file)", "np.savez"),
        ("array.tofile(file)", "array.tofile"),
        ("image.save(file)", "image.save"),
        ("getattr(os, name)", "getattr"),
        ("getattr(torch, name)", "getattr"),
        ("Path(x).unlink()", ".unlink"),
        ("io.FileIO(x)", "io.FileIO"),
        ("np.genfromtxt(x)", "np.genfromtxt"),
        ("torch.multiprocessing", "torch.multiprocessing"),
        ("urllib.request.URLopener()", "urllib.request.URLopener"),
        ("().__class__", ".__class__"),
    ],
)
def test_what_is_forbidden_is_seen(code, name):
    assert forbidden(ast.parse(code)) == {name}


@pytest.mark.parametrize("code", ["torch.os.environ['HF_TOKEN']", "torch.os.execv(path, [])", "Image.os.remove(x)"])
def test_what_is_reached_through_a_package_is_seen(code):
    assert forbidden(ast.parse(code))


def test_what_opens_something_is_seen():
    assert openers(ast.parse("def quiet():\n    pass\ndef loud():\n    open('file')\n")) == {"loud"}
