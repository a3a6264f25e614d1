"""The place of libjulia is asked for once, and asked for again where Julia has changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyjode.engines.julia import libjulia
from tests.fake_julia import fake_julia_with_pkg

pytestmark = pytest.mark.usefixtures("no_julia")


def ask(exe: Path) -> list[str]:
    """As juliacall does."""
    command = [str(exe), "--project=x", "-e", 'import Libdl; print(abspath(Libdl.dlpath("libjulia")))']
    with libjulia.remembered_while_juliacall_loads():
        return subprocess.run(command, check=True, capture_output=True, encoding="utf8").stdout.split("\0")


@pytest.fixture
def julia(tmp_path: Path) -> Path:
    exe = fake_julia_with_pkg(tmp_path / "julia")
    (tmp_path / "julia" / "lib").mkdir()
    (tmp_path / "julia" / "lib" / "libjulia.so").write_text("library")
    return exe


def silence(exe: Path) -> None:
    """No more answers from this Julia, though it looks the same."""
    before = exe.stat()
    exe.write_text("#" * before.st_size)
    os.utime(exe, ns=(before.st_mtime_ns, before.st_mtime_ns))


def test_the_second_question_is_answered_without_julia(julia: Path) -> None:
    answer = ask(julia)
    assert answer == [str(julia.parents[1] / "lib" / "libjulia.so"), str(julia.parent)]
    silence(julia)
    assert ask(julia) == answer


@pytest.mark.parametrize("changed", ["julia", "library", "gone"])
def test_another_julia_in_its_place_is_asked_again(julia: Path, changed: str) -> None:
    ask(julia)
    library = julia.parents[1] / "lib" / "libjulia.so"
    if changed == "julia":
        os.utime(julia, ns=(1, 1))
    elif changed == "library":
        library.write_text("a newer library")
    else:
        library.unlink()
    assert libjulia.recall(str(julia)) is None


def test_a_launcher_is_always_asked(julia: Path, tmp_path: Path) -> None:
    launcher = tmp_path / "julialauncher"
    julia.rename(launcher)
    (tmp_path / "julia" / "bin" / "julia").symlink_to(launcher)
    ask(tmp_path / "julia" / "bin" / "julia")
    assert not libjulia.memory_file().exists()


@pytest.mark.parametrize("text", ["", "[]", '{"JULIA": 1}', '{"JULIA": {"exe": 1}}'])
def test_a_damaged_memory_is_no_memory(julia: Path, text: str) -> None:
    libjulia.memory_file().parent.mkdir()
    libjulia.memory_file().write_text(text.replace("JULIA", str(julia)))
    assert libjulia.recall(str(julia)) is None
    assert ask(julia)[1] == str(julia.parent)


def test_a_home_that_cannot_be_written_does_no_harm(
    julia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYJODE_CONFIG_DIR", str(tmp_path / "file" / "config"))
    assert ask(julia)[1] == str(julia.parent)


def test_other_processes_pass_untouched() -> None:
    run = subprocess.run
    with libjulia.remembered_while_juliacall_loads():
        assert subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout == "hello\n"
        assert subprocess.run("echo hello", shell=True, capture_output=True, text=True).stdout == "hello\n"
    assert subprocess.run is run
