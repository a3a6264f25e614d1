"""When a system image is used, when it is stale, and what is said where none can be built; nothing is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyjode.cli import main
from pyjode.engines.julia import config, runtime, setup, sysimage
from pyjode.errors import EngineUnavailable
from tests.fake_julia import environment, fake_julia

pytestmark = pytest.mark.usefixtures("no_julia")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def location(no_julia: Path) -> config.JuliaLocation:
    return config.JuliaLocation(fake_julia(no_julia), environment(no_julia / "env"), None, "user file")


class Builder:
    """Stands for PackageCompiler and for a first gradient."""

    def __init__(self, status: int | None = 0, error: str = ""):
        self.status = status
        self.error = error
        self.said: list[str] = []
        self.commands: list[list[str]] = []
        self.trials: list[dict[str, str]] = []

    def run(self, command: list[str], variables: dict[str, str]) -> int | None:
        self.commands.append(command)
        if self.status == 0:
            project, image = command[command.index("-e") + 3 : command.index("-e") + 5]
            assert (Path(project) / "Manifest.toml").is_file()
            Path(image).write_text("image")
        return self.status

    def trial(self, variables: dict[str, str]) -> dict[str, Any]:
        assert Path(variables["PYTHON_JULIACALL_SYSIMAGE"]).is_file()
        self.trials.append(variables)
        return {"error": self.error} if self.error else {"seconds": {}}

    def build(self, location: config.JuliaLocation) -> Path:
        return sysimage.build(location, self.said.append, self.run, self.trial)


@pytest.fixture
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JULIA_CC", "cc")


@pytest.mark.usefixtures("_compiler")
def test_an_image_is_used_after_it_was_built_and_tried(
    location: config.JuliaLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sysimage.state(location).state == "none"
    builder = Builder()
    image = builder.build(location)
    assert builder.trials
    assert sysimage.state(location) == ("used", "", image)
    for name in ("PYTHON_JULIACALL_SYSIMAGE", "PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"):
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    runtime._set_environment(location)
    assert os.environ["PYTHON_JULIACALL_SYSIMAGE"] == str(image)
    again = builder.build(location)
    assert list(sysimage.folder().glob("*.so")) == [again]


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("what", ["Julia", "set of packages", "PyJODE.jl", "processor", "file", "record"])
def test_an_image_is_stale_when_something_it_was_built_from_changed(
    location: config.JuliaLocation, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = Builder().build(location)
    if what == "Julia":
        os.utime(location.exe, ns=(1, 1))
    elif what == "set of packages":
        with open(location.project / "Manifest.toml", "a") as manifest:
            manifest.write("\n")
    elif what == "PyJODE.jl":
        (tmp_path / "julia" / "src").mkdir(parents=True)
        (tmp_path / "julia" / "Project.toml").write_text("")
        monkeypatch.setattr(sysimage, "julia_source_dir", lambda: tmp_path / "julia")
    elif what == "processor":
        monkeypatch.setattr(sysimage, "_processor", lambda: "another")
    elif what == "file":
        image.unlink()
    else:
        (sysimage.folder() / "sysimage.json").write_text("{}")
    found = sysimage.state(location)
    assert found.state == "stale" and sysimage.usable(location) is None
    expected = {"file": "is gone", "record": "damaged"}.get(what, f"another {what}")
    assert expected in found.reason


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (Builder(status=3), "PackageCompiler.jl could not be installed.*copy the depot"),
        (Builder(status=1), "failed with status 1"),
        (Builder(status=None), "--time-limit MINUTES"),
        (Builder(error="it crashed"), "does not work: it crashed"),
    ],
)
def test_an_image_that_failed_is_not_used(location: config.JuliaLocation, builder: Builder, message: str) -> None:
    with pytest.raises(EngineUnavailable, match=message):
        builder.build(location)
    assert sysimage.state(location).state == "none"


@pytest.mark.usefixtures("_compiler")
def test_a_failed_build_leaves_the_image_that_is_used(location: config.JuliaLocation) -> None:
    image = Builder().build(location)
    with pytest.raises(EngineUnavailable):
        Builder(error="it crashed").build(location)
    assert sysimage.usable(location) == image


def test_without_a_compiler_nothing_is_started(location: config.JuliaLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JULIA_CC", raising=False)
    monkeypatch.setenv("PATH", "")
    builder = Builder()
    with pytest.raises(EngineUnavailable, match="install gcc"):
        builder.build(location)
    assert not builder.commands


def test_the_project_it_is_built_from_lists_what_goes_in_with_absolute_paths(
    location: config.JuliaLocation, tmp_path: Path
) -> None:
    (location.project / "Project.toml").write_text(
        '[deps]\nOther = "u"\n\n[preferences.Other]\na = 1\n\n[compat]\nOther = "1"\n'
    )
    (location.project / "LocalPreferences.toml").write_text("[Other]\nb = 2\n")
    with open(location.project / "Manifest.toml", "a") as manifest:
        manifest.write('\n[[deps.Other]]\npath = "../other"\n')
    (tmp_path / "target").mkdir()
    sysimage.write_project(location, tmp_path / "target")
    project, written = (tomllib.loads((tmp_path / "target" / n).read_text()) for n in ("Project.toml", "Manifest.toml"))
    assert set(project["deps"]) == set(sysimage.PACKAGES)
    assert project["preferences"] == {"Other": {"a": 1}} and "compat" not in project
    assert (tmp_path / "target" / "LocalPreferences.toml").read_text() == "[Other]\nb = 2\n"
    (pyjode,) = written["deps"]["PyJODE"]
    assert pyjode["path"] == str(config.julia_source_dir()) and "SciMLBase" in pyjode["deps"]
    triggers = [[names] if isinstance(names, str) else names for names in pyjode["extensions"].values()]
    assert {"SciMLSensitivity"} <= set().union(*triggers) <= set(pyjode["weakdeps"])
    # Extensions that are not in the image would be compiled again, for it.
    assert set().union(*triggers) <= set(sysimage.PACKAGES)
    assert written["deps"]["Other"][0]["path"] == str(tmp_path / "other")
    assert (
        written["deps"]["PythonCall"]
        == tomllib.loads((location.project / "Manifest.toml").read_text())["deps"]["PythonCall"]
    )


@pytest.mark.usefixtures("_compiler")
def test_doctor_says_whether_it_is_used(
    location: config.JuliaLocation, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pyjode.engines.julia import doctor

    monkeypatch.setattr(doctor, "time_first_gradient", lambda *args: {"error": "no Julia here"})
    config.register(location.exe, location.project)

    def image_line() -> str:
        main(["doctor"])
        (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("system image")]
        return line

    assert "pyjode setup --sysimage" in image_line()
    image = Builder().build(location)
    assert image_line().endswith(f"used: {image}")
    image.unlink()
    assert "STALE" in image_line()


@pytest.mark.usefixtures("_compiler")
def test_setup_builds_it_when_asked(
    location: config.JuliaLocation, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "precompile", lambda *arguments: None)
    config.register(location.exe, location.project)
    # The fake Julia knows nothing of PackageCompiler, and says so with its status.
    assert main(["setup", "--sysimage"]) == 1
    assert "PackageCompiler.jl failed with status 1" in capfd.readouterr().err
    assert json.loads(config.config_file().read_text())["julia"] == str(location.exe)
    assert subprocess.run([location.exe, "--version"], check=False).returncode == 0
