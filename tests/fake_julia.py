"""A Julia and an environment that look right from outside, for tests of what is said about them."""

from __future__ import annotations

import importlib.metadata
import stat
import sys
import textwrap
from pathlib import Path

JULIACALL = importlib.metadata.version("juliacall")


def fake_julia(folder: Path, version: str = "1.11.5", missing: str = "none", crash: bool = False) -> Path:
    """An executable that answers as Julia would to ``--version`` and to the question for packages."""
    exe = folder / "bin" / "julia"
    exe.parent.mkdir(parents=True, exist_ok=True)
    exe.write_text(
        f"""#!{sys.executable}
import sys
if sys.argv[1:] == ["--version"]:
    print("julia version {version}")
    sys.exit()
if {crash}:
    print("noise\\nERROR: could not load the project", file=sys.stderr)
    sys.exit(1)
assert sys.argv[1].startswith("--project="), sys.argv
assert "locate_package" in sys.argv[sys.argv.index("-e") + 1]
for wanted in sys.argv[sys.argv.index("-e") + 2:]:
    name = wanted.split("=")[0]
    print("missing " if name == "{missing}" else "found ", name, sep="")
"""
    )
    exe.chmod(exe.stat().st_mode | stat.S_IXUSR)
    return exe


def environment(folder: Path, pythoncall: str = JULIACALL) -> Path:
    """A Julia environment whose manifest has this PythonCall."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Project.toml").write_text("[deps]\n")
    (folder / "Manifest.toml").write_text(
        f'julia_version = "1.11.5"\nmanifest_format = "2.0"\n\n[[deps.PythonCall]]\nversion = "{pythoncall}"\n'
    )
    return folder


def fake_julia_with_pkg(
    folder: Path, version: str = "1.11.5", stops_first: bool = False, pythoncall: str = JULIACALL
) -> Path:
    """A Julia whose package manager installs everything at once: it writes a manifest.

    Args:
        folder: the executable is ``folder/bin/julia``; ``folder/log`` gets a line for each thing asked of it.
        version: its version.
        stops_first: whether its package manager dies in its first run, half-way.
        pythoncall: version that it installs.
    """
    exe = fake_julia(folder, version)
    answer = exe.read_text().split("\n", 1)[1]
    exe.write_text(
        f"""#!{sys.executable}
import os, pathlib, signal, sys
here = pathlib.Path({str(folder)!r})
said = sys.argv[-1]
def log(line):
    with open(here / "log", "a") as stream:
        print(line, file=stream)
if "dlpath" in said:
    print(here / "lib" / "libjulia.so", here / "bin", sep="\\0", end="")
elif "Pkg.add(" in said:
    project = next(a for a in sys.argv if a.startswith("--project=")).removeprefix("--project=")
    log("Pkg.add " + project)
    if {stops_first} and not (here / "stopped").exists():
        (here / "stopped").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    manifest = 'manifest_format = "2.0"\\n[[deps.PythonCall]]\\nversion = "{pythoncall}"\\n'
    (pathlib.Path(project) / "Manifest.toml").write_text(manifest)
else:
{textwrap.indent(answer, "    ")}
"""
    )
    return exe
