"""``pyjode setup`` for each machine it meets; Julia, its package manager and the proxy are stand-ins."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyjode.cli import main
from pyjode.engines.julia import config, setup
from tests.fake_julia import environment, fake_julia, fake_julia_with_pkg

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("no_julia")


@pytest.fixture(autouse=True)
def _compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no libjulia behind a fake Julia: what would be compiled and loaded is not what is tested here.
    monkeypatch.setattr(setup, "precompile", lambda *arguments: None)


def in_path(monkeypatch: pytest.MonkeyPatch, *executables: Path) -> None:
    folders = [str(exe.parent) for exe in executables]
    monkeypatch.setenv("PATH", os.pathsep.join([*folders, "/usr/bin", "/bin"]))


def the_error(capfd: Capture) -> str:
    """The one line that pyjode itself says on failure."""
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("pyjode: ")]
    return line


def test_no_julia_and_no_network_says_what_to_copy_and_what_to_type(capfd: Capture) -> None:
    assert main(["setup"]) == 1
    said = the_error(capfd)
    assert "no network" in said and "through the proxy http://127.0.0.1:9 (https_proxy)" in said
    assert "copy the Julia, the project folder and the depot" in said
    assert "pyjode setup --julia PATH --project DIR --depot DEPOT" in said


def test_without_a_proxy_the_error_says_how_to_name_one(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "")
    # A name that the resolver cannot know, whatever network there is.
    code = """
import sys, juliapkg.install_julia
juliapkg.install_julia._julia_versions_url = "https://julialang.invalid/versions.json"
from pyjode.engines.julia.setup import resolve_here
resolve_here(sys.argv[1])
"""
    cause = Path(os.environ["PYJODE_CONFIG_DIR"]).parent / "cause"
    done = subprocess.run([sys.executable, "-c", code, str(cause)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert cause.read_text().startswith("no network (")
    assert "export https_proxy=http://HOST:PORT" in cause.read_text()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that lets nobody through; the list gets what it was asked for."""
    asked: list[str] = []

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:  # the name is http.server's
            asked.append(self.path)
            self.send_error(407, "Proxy Authentication Required")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("https_proxy", f"http://somebody:secret@127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_proxy_is_used_and_its_refusal_told_without_the_password(proxy: list[str], capfd: Capture) -> None:
    assert main(["setup"]) == 1
    assert proxy == ["julialang-s3.julialang.org:443"]
    said = the_error(capfd)
    assert "407" in said and "through the proxy http://127.0.0.1:" in said
    assert "secret" not in said


def test_a_julia_in_path_is_used(no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    exe = fake_julia_with_pkg(no_julia / "new")
    in_path(monkeypatch, exe)
    assert main(["setup"]) == 0
    found = config.find_julia()
    assert found == config.JuliaLocation(exe, no_julia / "julia_env", None, "juliapkg")
    assert f"Julia {exe}, project {no_julia / 'julia_env'}" in capfd.readouterr().out


def test_a_julia_in_path_too_old_is_named(no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    exe = fake_julia(no_julia / "old", version="1.9.4")
    in_path(monkeypatch, exe)
    assert main(["setup"]) == 1
    assert f"{exe} is Julia 1.9.4, wanted: " in the_error(capfd)


def test_of_several_the_first_that_is_new_enough_is_used_and_all_are_named(
    no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    old = fake_julia(no_julia / "old", version="1.9.4")
    new = fake_julia_with_pkg(no_julia / "new")
    other = fake_julia_with_pkg(no_julia / "other", version="1.10.9")
    broken = no_julia / "broken" / "julia"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    in_path(monkeypatch, broken, old, new, other)
    assert main(["setup"]) == 0
    said = capfd.readouterr().out
    assert f"{old} (1.9.4), {new} (1.11.5), {other} (1.10.9); taking {new}" in said
    found = config.find_julia()
    assert found is not None and found.exe == new

    assert main(["setup", "--julia", str(other)]) == 0
    found = config.find_julia()
    assert found is not None and found.exe == other
    assert main(["setup"]) == 0  # nothing to do: what was chosen stays
    assert config.find_julia() == found


def test_julia_alone_must_be_one_that_can_be_used(no_julia: Path, capfd: Capture) -> None:
    assert main(["setup", "--julia", str(no_julia / "absent")]) == 1
    assert "no executable file" in the_error(capfd)
    assert main(["setup", "--julia", sys.executable]) == 1
    assert "is not Julia" in the_error(capfd)
    assert main(["setup", "--julia", str(fake_julia(no_julia / "old", version="1.9.4"))]) == 1
    assert "is Julia 1.9.4, and pyjode needs" in the_error(capfd)


def test_julia_alone_does_not_undo_a_remembered_environment(no_julia: Path, capfd: Capture) -> None:
    config.register(fake_julia(no_julia), environment(no_julia / "env"))
    assert main(["setup", "--julia", str(fake_julia(no_julia / "other"))]) == 1
    assert "give --project too, or run `pyjode setup --forget`" in the_error(capfd)


def test_an_interrupted_install_is_taken_up_again(
    no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    exe = fake_julia_with_pkg(no_julia / "new", stops_first=True)
    in_path(monkeypatch, exe)
    assert main(["setup"]) == 1
    assert "package manager failed" in the_error(capfd)
    assert config.find_julia() is None
    assert (no_julia / "julia_env" / "Project.toml").is_file()
    assert main(["setup"]) == 0
    assert (exe.parents[1] / "log").read_text().count("Pkg.add") == 2
    assert config.find_julia() is not None


def test_ctrl_c_says_that_setup_goes_on(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "run_limited", interrupted)
    assert main(["setup"]) == 130
    assert the_error(capfd) == "pyjode: interrupted; run the command again, it goes on from where it was"


def read_only(folder: Path) -> Path:
    """A folder that nobody can write, root neither."""
    folder.write_text("a file")
    return folder / "depot"


def test_a_read_only_depot_gets_one_of_the_users_before_it(
    no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv("HOME", str(no_julia / "home"))
    shared = read_only(no_julia / "shared")
    arguments = ["--julia", str(fake_julia(no_julia)), "--project", str(environment(no_julia / "env"))]
    assert main(["setup", *arguments, "--depot", f"{shared}:"]) == 0
    layered = f"{no_julia / 'home' / '.julia'}:{shared}:"
    assert f"Julia compiles into yours: {layered}" in capfd.readouterr().out
    found = config.find_julia()
    assert found is not None and found.depot == layered
    assert config.read_only_depot(found) == ""
    # A depot of the user's own stays as it is.
    mine = no_julia / "mine"
    assert main(["setup", *arguments, "--depot", str(mine)]) == 0
    found = config.find_julia()
    assert found is not None and found.depot == str(mine)
    assert not mine.exists()


def test_a_read_only_home_too(no_julia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, shared = read_only(no_julia / "home"), read_only(no_julia / "shared")
    monkeypatch.setenv("HOME", str(home))
    assert config.with_writable_depot(str(shared)) == f"{config.own_depot()}:{shared}"
    assert config.with_writable_depot(None) == f"{config.own_depot()}:"


def test_variables_that_name_a_read_only_depot_are_refused_with_the_remedy(
    no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.undo()  # precompile is what checks the depot
    monkeypatch.setenv("HOME", str(no_julia / "home"))
    monkeypatch.setenv("PYJODE_CONFIG_DIR", str(no_julia / "config"))
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(fake_julia(no_julia)))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(environment(no_julia / "env")))
    shared = read_only(no_julia / "shared")
    monkeypatch.setenv("JULIA_DEPOT_PATH", str(shared))
    assert main(["setup"]) == 1
    assert f"`export JULIA_DEPOT_PATH={no_julia / 'home' / '.julia'}:{shared}`" in the_error(capfd)
