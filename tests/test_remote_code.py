"""What whoever passes trust_remote_code=True lets run: read from the syntax trees of the four files."""

import ast
import re

import pytest
from conftest import ROOT

FILES = ("configuration_nula.py", "modeling_nula.py", "image_processing_nula.py", "pipeline_nula.py")
PACKAGES = {"torch", "transformers", "numpy", "PIL"}
OPTIONAL = {("certify", "scipy")}  # function and what it alone imports, in a try, so that nothing else needs it
STANDARD = {
    "collections",
    "concurrent",
    "contextlib",
    "dataclasses",
    "io",
    "itertools",
    "os",
    "pathlib",
    "struct",
    "time",
    "types",
    "typing",
    "urllib",
    "warnings",
}
SIBLINGS = {"." + file.removesuffix(".py") for file in FILES}
FORBIDDEN = {"eval", "exec", "compile", "__import__", "globals", "breakpoint", "input"}
OF_OS = {"os.PathLike", "os.fspath"}  # all that is used of it
READING = re.compile(r"load(s|txt)?|save(z|z_compressed|txt)?|(from|to)file|memmap|hub|write_(bytes|text)")
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


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of what is imported, siblings with a dot in front."""
    names = set()
    for node in ast.walk(without_optional(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." + node.module if node.level else node.module.partition(".")[0])
    return names


def forbidden(tree: ast.Module) -> set[str]:
    """What is used that evaluates code, reads the environment or starts something, or reads and writes files."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN:
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner == "os" and f"os.{node.attr}" not in OF_OS:
                found.add(f"os.{node.attr}")
            if READING.fullmatch(node.attr) and (owner, node.attr) != ("image", "load"):  # PIL decodes an open image
                found.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found |= {f"os.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if READING.fullmatch(alias.name)}
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


@pytest.mark.parametrize("name", FILES)
def test_only_known_packages_and_each_other_are_imported(name):
    assert imported(tree_of(name)) <= PACKAGES | STANDARD | SIBLINGS


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_evaluated_started_or_stored(name):
    assert forbidden(tree_of(name)) == set()


def test_only_the_loading_of_an_image_opens_anything():
    found = {name: openers(tree_of(name)) for name in FILES}
    assert found == {name: {"load_image"} if name == "pipeline_nula.py" else set() for name in FILES}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from subprocess import run",
        "import requests",
        "from .other import thing",
        "import http.client",
        "from scipy.stats import norm",
        "def certify():\n    from scipy.stats import norm",
        "def other():\n    try:\n        from scipy.stats import norm\n    except ImportError:\n        raise",
    ],
)
def test_a_forbidden_import_is_seen(code):
    assert not imported(ast.parse(code)) <= PACKAGES | STANDARD | SIBLINGS


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("eval('1')", "eval"),
        ("os.environ['HOME']", "os.environ"),
        ("from os import system as quiet", "os.system"),
        ("os.execv(path, [])", "os.execv"),
        ("torch.load(file)", "torch.load"),
        ("from torch import load", "load"),
        ("np.savez(file)", "np.savez"),
        ("array.tofile(file)", "array.tofile"),
        ("image.save(file)", "image.save"),
    ],
)
def test_what_is_forbidden_is_seen(code, name):
    assert forbidden(ast.parse(code)) == {name}


def test_what_opens_something_is_seen():
    assert openers(ast.parse("def quiet():\n    pass\ndef loud():\n    open('file')\n")) == {"loud"}
