"""A Julia package server on the loopback, with a registry of the packages that an environment already has.

It speaks what Julia's package manager asks for (Pkg's documentation, "Package and storage server protocols"):
``/registries``, ``/registry/UUID/HASH`` and ``/package/UUID/HASH``, the latter two tarballs with git's hash of the tree
in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

GENERAL = "23338594-aafe-5451-b93e-139f81909106"
"""UUID of the registry that Julia looks for by itself."""

Tree = Mapping[str, tuple[bytes, bool]]
"""Files by path, each with whether it is executable."""


@dataclass(frozen=True)
class Package:
    """A Julia package: its files, and dependencies by name with their UUIDs."""

    name: str
    uuid: str
    version: str
    files: Tree
    deps: Mapping[str, str]


def tree_of(folder: Path) -> dict[str, tuple[bytes, bool]]:
    """The files of a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), os.access(path, os.X_OK))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def tree_hash(files: Tree) -> str:
    """Git's SHA-1 of a tree, by which Julia's package manager names a version of a package."""
    return _tree(files).hex()


def _tree(files: Tree) -> bytes:
    entries: list[tuple[bytes, bytes, bytes]] = []
    folders: dict[str, dict[str, tuple[bytes, bool]]] = {}
    for path, (content, executable) in files.items():
        first, _, rest = path.partition("/")
        if rest:
            folders.setdefault(first, {})[rest] = content, executable
        else:
            entries.append((first.encode(), b"100755" if executable else b"100644", _object(b"blob", content)))
    # Git sorts a folder as if its name ended in a slash.
    entries += [(f"{name}/".encode(), b"40000", _tree(inside)) for name, inside in folders.items()]
    body = b"".join(mode + b" " + name.rstrip(b"/") + b"\0" + sha for name, mode, sha in sorted(entries))
    return _object(b"tree", body)


def _object(kind: bytes, body: bytes) -> bytes:
    return hashlib.sha1(kind + b" " + str(len(body)).encode() + b"\0" + body, usedforsecurity=False).digest()


def tarball(files: Tree) -> bytes:
    """A compressed tar archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for path, (content, executable) in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), 0o755 if executable else 0o644
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def registry(packages: Iterable[Package]) -> dict[str, tuple[bytes, bool]]:
    """A registry of one version of each."""
    listed = [f'name = "General"\nuuid = "{GENERAL}"\nrepo = "http://127.0.0.1/General.git"\n\n[packages]\n']
    files: dict[str, str] = {}
    for package in packages:
        listed.append(f'{package.uuid} = {{ name = "{package.name}", path = "{package.name}" }}\n')
        files[f"{package.name}/Package.toml"] = (
            f'name = "{package.name}"\nuuid = "{package.uuid}"\nrepo = "http://127.0.0.1/{package.name}.jl.git"\n'
        )
        files[f"{package.name}/Versions.toml"] = (
            f'["{package.version}"]\ngit-tree-sha1 = "{tree_hash(package.files)}"\n'
        )
        if package.deps:
            deps = "".join(f'{name} = "{uuid}"\n' for name, uuid in sorted(package.deps.items()))
            files[f"{package.name}/Deps.toml"] = f'["{package.version}"]\n{deps}'
    files["Registry.toml"] = "".join(listed)
    return {path: (content.encode(), False) for path, content in files.items()}


@contextlib.contextmanager
def serving(packages: Iterable[Package], broken: set[str]) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and a list that gets each path asked for.

    Packages whose name is in ``broken`` are refused, for as long as it is there.
    """
    packages = list(packages)
    known = registry(packages)
    answers = {"/registries": (f"/registry/{GENERAL}/{tree_hash(known)}\n".encode(), "")}
    answers[f"/registry/{GENERAL}/{tree_hash(known)}"] = tarball(known), ""
    for package in packages:
        answers[f"/package/{package.uuid}/{tree_hash(package.files)}"] = tarball(package.files), package.name
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            asked.append(self.path)
            content, name = answers.get(self.path, (b"", ""))
            if not content or name in broken:
                self.send_error(503 if content else 404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
