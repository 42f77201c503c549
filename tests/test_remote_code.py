"""What whoever passes trust_remote_code=True lets run: read from the syntax trees of the four files."""

import ast
import sys

import pytest
from conftest import ROOT

FILES = ("configuration_nula.py", "modeling_nula.py", "image_processing_nula.py", "pipeline_nula.py")
PACKAGES = {"torch", "transformers", "numpy", "PIL"}
DANGEROUS_MODULES = {"pickle", "subprocess", "socket", "ctypes", "importlib", "marshal", "shelve", "shutil", "runpy"}
DANGEROUS_NAMES = {"eval", "exec", "compile", "__import__", "globals", "breakpoint", "input"}
DANGEROUS_ATTRIBUTES = {"environ", "getenv", "putenv", "system", "popen", "remove", "unlink"}
LOADERS = {"torch.load", "torch.save", "torch.hub", "np.load", "np.save", "np.fromfile", "np.memmap"}
FORBIDDEN = DANGEROUS_NAMES | DANGEROUS_ATTRIBUTES | LOADERS
OPENING = {"open", "urlopen", "urlretrieve", "read_bytes", "read_text", "write_bytes", "write_text", "fromfile"}


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of what is imported, siblings with a dot in front."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." + node.module if node.level else node.module.partition(".")[0])
    return names


def used(tree: ast.AST) -> set[str]:
    """Every name, attribute, and name with its attribute."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    dotted = {f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)}
    return names | dotted | {node.attr for node in attributes}


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


@pytest.mark.parametrize("name", FILES)
def test_only_known_packages_and_each_other_are_imported(name):
    siblings = {"." + file.removesuffix(".py") for file in FILES}
    allowed = PACKAGES | siblings | (set(sys.stdlib_module_names) - DANGEROUS_MODULES)
    assert imported(tree_of(name)) <= allowed


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_evaluated_and_the_environment_is_not_read(name):
    assert not used(tree_of(name)) & FORBIDDEN


def test_only_the_loading_of_an_image_opens_anything():
    found = {name: openers(tree_of(name)) for name in FILES}
    assert found == {name: {"load_image"} if name == "pipeline_nula.py" else set() for name in FILES}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from subprocess import run", "import requests", "from .other import thing"],
)
def test_a_forbidden_import_is_seen(code):
    siblings = {"." + file.removesuffix(".py") for file in FILES}
    allowed = PACKAGES | siblings | (set(sys.stdlib_module_names) - DANGEROUS_MODULES)
    assert not imported(ast.parse(code)) <= allowed


def test_what_is_forbidden_is_seen():
    tree = ast.parse(
        "import os\ndef quiet():\n    return os.environ, eval('1'), torch.load(file)\ndef loud():\n    open('file')\n"
    )
    assert used(tree) & FORBIDDEN == {"environ", "eval", "torch.load"}
    assert openers(tree) == {"loud"}
