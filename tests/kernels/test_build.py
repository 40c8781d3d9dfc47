"""The library of kernels is built once, found again, and built anew; what keeps it from being built is said."""

import stat
from pathlib import Path

import pytest
import torch

from shard.environment import NO_COMPILER
from shard.kernels import build as build_module
from shard.kernels.build import load, load_kernels

LINKS_JUNK = 'while [ "$1" != -o ]; do shift; done; echo junk > "$2"'


def a_compiler(folder: Path, script: str) -> str:
    path = folder / "a-compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was loaded: the contents of files, which must not be "damaged"."""
    contents: list[str] = []

    def load_library(path: str) -> None:
        if "damaged" in Path(path).read_text():
            raise OSError("damaged")
        contents.append(Path(path).read_text())

    monkeypatch.setattr(torch.ops, "load_library", load_library)
    return contents


def test_what_is_built_is_found_again_and_what_is_damaged_is_built_again(tmp_path: Path, loaded: list[str]) -> None:
    compiler, source, folder = a_compiler(tmp_path, LINKS_JUNK), tmp_path / "kernel.cpp", tmp_path / "cache"
    source.touch()
    load(compiler, source, folder)
    (library,) = folder.iterdir()  # and nothing is left beside it
    library.write_text("the first")
    load(compiler, source, folder)
    library.write_text("damaged")
    load(compiler, source, folder)
    assert loaded == ["junk\n", "the first", "junk\n"] and list(folder.iterdir()) == [library]


@pytest.mark.parametrize("change", ["source", "header", "flags", "torch", "libc", "compiler"])
def test_what_another_source_or_compiler_built_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[str], change: str
) -> None:
    compiler, source, folder = a_compiler(tmp_path, LINKS_JUNK), tmp_path / "kernel.cpp", tmp_path / "cache"
    header = source.with_name("header.h")
    for path in (source, header):
        path.write_text("as it was")
    load(compiler, source, folder)
    if change == "source":
        source.write_text("another")
    elif change == "header":
        header.write_text("another")
    elif change == "flags":
        monkeypatch.setattr(build_module, "_FLAGS", ("-O1",))
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "another")
    elif change == "libc":
        monkeypatch.setattr(build_module.platform, "libc_ver", lambda: ("glibc", "another"))
    else:
        a_compiler(tmp_path, LINKS_JUNK + " # a newer one")
    load(compiler, source, folder)
    assert len(list(folder.iterdir())) == len(loaded) == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, NO_COMPILER),
        ("echo 'no such option' >&2; exit 1", "a-compiler fails (no such option)"),
        ("echo 'In file x:' >&2; echo 'x:1: error: y' >&2; exit 1", "a-compiler fails (x:1: error: y)"),
        (r"printf '\377\n' >&2; exit 1", "a-compiler fails (\ufffd)"),
        ("exit 3", "a-compiler fails (3)"),
        ("sleep 60", "a-compiler does not end within 0.2 s"),
        ("exit 0", "kernels of a-compiler cannot be built or loaded ([Errno 2] No such file or directory: "),
        (LINKS_JUNK, "kernels of a-compiler cannot be built or loaded ({library}: file too short)"),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, reason: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if script is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CXX", a_compiler(tmp_path, script))
    if script == "sleep 60":
        monkeypatch.setattr(build_module, "_SECONDS", 0.2)
    works, said = load_kernels.__wrapped__("decode.cpp")
    library = next(iter((tmp_path / "cache").rglob("*.so")), "")
    assert not works and said.startswith(reason.format(library=library)) and "\n" not in said


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("CXX", a_compiler(tmp_path, LINKS_JUNK))
    monkeypatch.setattr(build_module, "compiler_cache", lambda: tmp_path / "a file")
    works, said = load_kernels.__wrapped__("decode.cpp")
    assert not works and "cannot be built or loaded ([Errno 20] Not a directory" in said


def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "compiler_cache", lambda: None)
    monkeypatch.setattr(build_module, "cpp_compiler", lambda: "/bin/true")
    assert load_kernels.__wrapped__("decode.cpp") == (False, "the user's cache folder cannot be written")
