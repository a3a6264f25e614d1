"""How Julia starts: what goes on meanwhile, what is compiled beforehand, what a failure says. Each in a process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.julia


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_goes_on_meanwhile_is_over_when_julia_is_ready_and_its_errors_are_dropped() -> None:
    code = """
        import threading
        from pyjode.engines.julia.boundary import gate
        from pyjode.engines.julia.runtime import runtime
        seen = []
        def meanwhile():
            seen.append(threading.current_thread().name)
            raise ValueError("dropped")
        runtime(meanwhile)
        print(seen, [t.name for t in threading.enumerate()], gate().evaluate("1 + 1"))
    """
    assert run(code).split("\n")[0] == "['pyjode-beside-julia'] ['MainThread'] 2"


def test_the_first_solve_of_a_torch_f_imports_the_tracer_while_julia_loads_and_one_of_julia_code_does_not() -> None:
    code = """
        import torch, pyjode
        import pyjode.engines.julia.engine as engine
        warmed = []
        engine.warm_tracer = lambda: warmed.append(True)
        y0, t = torch.ones(2), torch.tensor([0.0, 1.0])
        pyjode.odeint({f}, y0, t, engine="julia")
        print(len(warmed))
    """
    assert run(code.replace("{f}", "lambda t, y: -y")) == "1\n"
    assert run(code.replace("{f}", "pyjode.JuliaFunction('f(u, p, t) = -u')")) == "0\n"


def test_the_c_functions_are_in_the_package_image(tmp_path: Path) -> None:
    from pyjode.engines.julia.config import find_julia, julia_environment, julia_source_dir

    location = find_julia()
    assert location is not None
    compiled = tmp_path / "compiled.txt"
    code = f'push!(LOAD_PATH, "{julia_source_dir()}"); import PyJODE; print(length(PyJODE.entry_points()))'
    command = [
        location.exe,
        f"--project={location.project}",
        "--startup-file=no",
        f"--trace-compile={compiled}",
        "-e",
        code,
    ]
    environment = os.environ | julia_environment(location)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
    assert [line for line in compiled.read_text().splitlines() if "PyJODE.c_" in line] == []


def test_a_pyjode_that_does_not_load_is_said_with_its_reason() -> None:
    code = """
        import pathlib, tempfile, pyjode
        from pyjode.engines.julia import config, runtime
        broken = pathlib.Path(tempfile.mkdtemp())
        (broken / "src").mkdir()
        (broken / "Project.toml").write_text('name = "PyJODE"\\nuuid = "8e1c5f0a-3b0e-4b8e-9f4b-6f0c9d7a2e52"\\n')
        (broken / "src" / "PyJODE.jl").write_text("module PyJODE\\nthis_is_not_defined()\\nend\\n")
        config.julia_source_dir = lambda: broken
        try:
            runtime.runtime()
        except pyjode.PyjodeError as error:
            print(type(error).__name__, "could not be loaded" in str(error), "PyJODE" in str(error), error)
    """
    assert run(code).startswith("EngineUnavailable True True")
