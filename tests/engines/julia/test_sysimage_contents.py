"""An image that PackageCompiler made without the packages is not taken for one with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyjode.engines.julia import config, sysimage

pytestmark = pytest.mark.julia

# What it does where nothing is to be loaded: the image of this very session, once more.
COMPILER = """
module PackageCompiler
create_sysimage(packages; project, sysimage_path, include_transitive_dependencies) =
    symlink(unsafe_string(Base.JLOptions().image_file), sysimage_path)
end
"""


@pytest.mark.parametrize(("packages", "works"), [(["LinearAlgebra"], True), (["LinearAlgebra", "PyJODE"], False)])
def test_the_image_is_asked_for_its_packages(tmp_path: Path, packages: list[str], works: bool) -> None:
    location = config.find_julia()
    assert location is not None
    (tmp_path / "PackageCompiler.jl").write_text(COMPILER)
    variables = sysimage.build_variables(location) | {"JULIA_LOAD_PATH": f"{tmp_path}:"}
    image = tmp_path / "image.so"
    command = [str(location.exe), "--startup-file=no", "-e", sysimage.BUILD, "none", "none", str(image), *packages]
    code = subprocess.run(command, env=variables, timeout=300, capture_output=True, check=False).returncode
    assert image.is_symlink()
    assert (code == 0) == works
