"""Where Julia is looked for, what is said when it is not there, and what is remembered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyjode.engines.julia import config
from pyjode.errors import InputError
from tests.fake_julia import JULIACALL, environment, fake_julia

pytestmark = pytest.mark.usefixtures("no_julia")


def resolved_by_juliapkg(tmp_path: Path, sha256: str | None = None) -> Path:
    """What juliapkg leaves behind after it has installed Julia and the packages."""
    from juliapkg.deps import META_VERSION

    exe = fake_julia(tmp_path / "julia_env" / "pyjuliapkg" / "install")
    environment(tmp_path / "julia_env")
    ours = config.PACKAGE / "juliapkg.json"
    record = {"timestamp": 0.0, "hash_sha256": sha256 or hashlib.sha256(ours.read_bytes()).hexdigest()}
    meta = {"meta_version": META_VERSION, "executable": str(exe), "deps_files": {str(ours): record}}
    (tmp_path / "julia_env" / "pyjuliapkg" / "meta.json").write_text(json.dumps(meta))
    return exe


def test_nothing_set_up_names_the_command() -> None:
    assert config.find_julia() is None
    assert "`pyjode setup`" in config.why_not()


def test_register_remembers_and_forget_forgets(tmp_path: Path) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    registered = config.register(exe, project, depot="/depot:")
    assert config.find_julia() == registered == config.JuliaLocation(exe, project, "/depot:", "user file")
    assert config.why_not() == ""
    assert registered.variables() == {
        "PYTHON_JULIACALL_EXE": str(exe),
        "PYTHON_JULIACALL_PROJECT": str(project),
        "JULIA_DEPOT_PATH": "/depot:",
    }
    assert json.loads(config.config_file().read_text()) == {
        "julia": str(exe),
        "project": str(project),
        "depot": "/depot:",
    }
    assert config.forget()
    assert config.find_julia() is None
    assert not config.forget()


def test_register_takes_relative_paths_and_names_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(exe.parent), prepend=os.pathsep)
    location = config.register("julia", "env")
    assert (location.exe, location.project) == (exe, project)


def test_environment_variables_come_first_then_the_user_file_then_juliapkg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_juliapkg = resolved_by_juliapkg(tmp_path)
    found = config.find_julia()
    assert found is not None
    assert (found.source, found.exe, found.depot) == ("juliapkg", from_juliapkg, None)

    config.register(fake_julia(tmp_path / "registered"), environment(tmp_path / "env"))
    found = config.find_julia()
    assert found is not None
    assert found.source == "user file"

    exe = fake_julia(tmp_path / "variables")
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(exe))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(environment(tmp_path / "other")))
    found = config.find_julia()
    assert found is not None
    assert (found.source, found.exe, found.project) == ("environment", exe, tmp_path / "other")


def test_one_variable_alone_is_refused_even_where_the_file_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.register(fake_julia(tmp_path), environment(tmp_path / "env"))
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(tmp_path / "bin" / "julia"))
    assert config.find_julia() is None
    assert "only one is set" in config.why_not()
    assert config.chosen_but_unusable() == config.why_not()


@pytest.mark.parametrize("wrong", ["exe", "project"])
def test_variables_that_lead_nowhere_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(tmp_path / "none" if wrong == "exe" else exe))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path / "none" if wrong == "project" else project))
    assert config.find_julia() is None
    assert f"PYTHON_JULIACALL_{wrong.upper()}={tmp_path / 'none'}" in config.why_not()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"julia"', "{}", '{"julia": 1, "project": "p"}', '{"julia": "j", "project": "p", "depot": 1}'],
)
def test_a_damaged_file_is_said_and_can_be_forgotten(text: str) -> None:
    config.config_file().parent.mkdir()
    config.config_file().write_text(text)
    assert config.find_julia() is None
    assert "damaged" in config.why_not()
    assert "pyjode setup --forget" in config.why_not()
    assert config.forget()
    assert "damaged" not in config.why_not()


def test_a_file_that_is_not_text_is_said() -> None:
    config.config_file().parent.mkdir()
    config.config_file().write_bytes(b"\xff\xfe\x00")
    assert config.find_julia() is None
    assert "cannot be read" in config.why_not()


@pytest.mark.parametrize("gone", ["Julia", "project"])
def test_what_was_removed_since_is_said(tmp_path: Path, gone: str) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    config.register(exe, project)
    (exe if gone == "Julia" else project / "Manifest.toml").unlink()
    assert config.find_julia() is None
    assert f"the {gone} that" in config.why_not()


def test_juliapkg_packages_for_another_pyjode_do_not_count(tmp_path: Path) -> None:
    resolved_by_juliapkg(tmp_path, sha256="0" * 64)
    assert config.find_julia() is None
    assert "another version of pyjode" in config.why_not()


def test_juliapkg_packages_for_another_juliacall_do_not_count(tmp_path: Path) -> None:
    resolved_by_juliapkg(tmp_path)
    environment(tmp_path / "julia_env", pythoncall="0.9.1")
    assert config.find_julia() is None
    assert "another version of juliacall: run `pyjode setup`" in config.why_not()
    assert config.chosen_but_unusable() == ""


def test_juliapkg_install_that_is_gone_does_not_count(tmp_path: Path) -> None:
    resolved_by_juliapkg(tmp_path).unlink()
    assert config.find_julia() is None
    assert "gone" in config.why_not()


def test_juliapkg_meta_that_is_damaged_is_named(tmp_path: Path) -> None:
    resolved_by_juliapkg(tmp_path)
    (tmp_path / "julia_env" / "pyjuliapkg" / "meta.json").write_text("{")
    assert config.find_julia() is None
    assert "meta.json is damaged" in config.why_not()


def test_a_pythoncall_of_another_release_than_juliacall_is_refused(tmp_path: Path) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    config.register(exe, project)
    environment(project, pythoncall="0.9.1")
    os.utime(project / "Manifest.toml", ns=(0, time.time_ns() + 10**9))
    assert config.find_julia() is None
    assert "`pip install juliacall==0.9.1`" in config.why_not()
    with pytest.raises(InputError, match=r"PythonCall 0\.9\.1"):
        config.register(exe, project)


@pytest.mark.parametrize(
    ("julia", "message"),
    [
        ({"version": "1.9.4"}, r"Julia 1\.9\.4; pyjode needs 1\.10"),
        ({"missing": "SciMLSensitivity"}, r"lacks 1 Julia packages: SciMLSensitivity"),
        ({"crash": True}, "ERROR: could not load the project"),
    ],
)
def test_register_refuses_what_cannot_work(tmp_path: Path, julia: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.register(fake_julia(tmp_path, **julia), environment(tmp_path / "env"))  # type: ignore[arg-type]
    assert not config.config_file().exists()


def test_register_refuses_what_is_no_julia(tmp_path: Path) -> None:
    project = environment(tmp_path / "env")
    with pytest.raises(InputError, match="no executable file"):
        config.register(tmp_path / "absent", project)
    with pytest.raises(InputError, match="is not Julia"):
        config.register(sys.executable, project)


def test_register_refuses_a_folder_that_is_no_environment(tmp_path: Path) -> None:
    exe = fake_julia(tmp_path)
    with pytest.raises(InputError, match=r"no Project\.toml"):
        config.register(exe, tmp_path)
    (tmp_path / "Project.toml").write_text("[deps]\n")
    with pytest.raises(InputError, match=r"Pkg\.instantiate"):
        config.register(exe, tmp_path)


def test_a_manifest_named_after_a_julia_version_counts(tmp_path: Path) -> None:
    project = environment(tmp_path / "env")
    (project / "Manifest.toml").rename(project / "Manifest-v1.11.toml")
    config.register(fake_julia(tmp_path), project)
    assert config.manifest_versions(project) == {"PythonCall": JULIACALL}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    config.register(exe, project)
    before = config.config_file().read_text()

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        config.register(exe, project, depot="/another")
    assert config.config_file().read_text() == before
    assert list(config.config_file().parent.iterdir()) == [config.config_file()]


def test_the_file_lies_in_the_users_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PYJODE_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert config.config_file() == tmp_path / "pyjode" / "julia.json"
    else:
        assert config.config_file().name == "julia.json"


def test_the_sources_of_pyjode_jl_are_found() -> None:
    assert (config.julia_source_dir() / "Project.toml").read_text().startswith('name = "PyJODE"')


def test_looking_starts_no_process_and_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.register(fake_julia(tmp_path), environment(tmp_path / "env"))
    config.find_julia()

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("looking for Julia started a process")

    monkeypatch.setattr(subprocess, "Popen", refused)
    start = time.perf_counter()
    for _ in range(20):
        assert config.find_julia() is not None
    assert (time.perf_counter() - start) / 20 < 0.005


def test_processes_we_start_have_this_pyjode_wherever_they_run(tmp_path: Path) -> None:
    (tmp_path / "pyjode").mkdir()
    (tmp_path / "pyjode" / "__init__.py").write_text("raise ImportError('another checkout')")
    command = config.python_command("import pyjode.errors, sys; print(pyjode.errors.__file__, sys.argv[1])", "argument")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(config.PACKAGE / "errors.py"), "argument"]
