"""``import pyjode`` is light, and its names are what they say they are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pyjode

ROOT = Path(__file__).parents[1]


def test_the_three_lists_of_public_names_agree() -> None:
    tree = ast.parse(Path(pyjode.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == pyjode._HOME
    assert set(pyjode.__all__) == set(imported) | {"__version__"}


def test_every_public_name_is_there_and_no_module() -> None:
    for name in pyjode.__all__:
        assert not isinstance(getattr(pyjode, name), type(ast)), name
        assert name in dir(pyjode)


def test_a_submodule_never_hides_the_function_of_its_name() -> None:
    code = """
import sys
import pyjode
assert "torch" not in sys.modules
import pyjode.odeint, pyjode.solve  # each sets itself as an attribute of the package
assert callable(pyjode.odeint) and callable(pyjode.solve) and callable(pyjode.methods)
from pyjode.solve import ODEProblem
assert ODEProblem is pyjode.ODEProblem
from pyjode import *
assert solve is pyjode.solve and odeint is pyjode.odeint
try:
    pyjode.absent
except AttributeError as error:
    assert "absent" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_line_needs_no_torch() -> None:
    code = """
import sys
from pyjode.cli import main
from pyjode.engines.julia import config, doctor, setup
config.find_julia()
main(["methods"])
try:
    main(["--help"])
finally:
    assert not {"torch", "juliacall", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("setup", "doctor", "methods", "Rodas5P"))
