"""The C++ files beside this one as libraries, which the machine's own compiler builds once for its own processor, some
five seconds each. What is built stays in the user's cache, and torch's threads run it.

Every caller has torch's kernel to go back to, where there is no compiler.
"""

import contextlib
import hashlib
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from shard.environment import NO_COMPILER, compiler_cache, cpp_compiler
from shard.files import copy_file

FOLDER = Path(__file__).parent

# Sums may be taken in the order that suits the processor; what -ffast-math does besides, to NaN and to every other
# library of the process, is left out.
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")
_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
_SECONDS = 120
# The oldest torch whose stable interface has what the files need: 2.10.
_FLAGS = ("-std=c++20", "-O3", _PROCESSOR, *_MATH, "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000")


@cache
def load_kernels(source: str) -> tuple[bool, str]:
    """(whether torch.ops.shard has the kernels of this file, the reason), found out by loading them, built before where
    needed.
    """
    compiler, folder = cpp_compiler(), compiler_cache()
    if compiler is None:
        return False, NO_COMPILER
    if folder is None:
        return False, "the user's cache folder cannot be written"
    name = Path(compiler).name
    try:
        load(compiler, FOLDER / source, folder / "kernels")
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        return False, f"{name} fails ({lines[0].strip() if lines else error.returncode})"
    except subprocess.TimeoutExpired:
        return False, f"{name} does not end within {_SECONDS} s"
    except (OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        return False, f"kernels of {name} cannot be built or loaded ({(str(cause).splitlines() or [repr(cause)])[0]})"
    return True, f"built by {name} for this processor"


def load(compiler: str, source: Path, folder: Path) -> None:
    """Load the source's library in the folder, made anew where none there can be loaded. OSError or SubprocessError."""
    made_by = Path(compiler).resolve()
    stat = made_by.stat()
    parts = (
        *(path.read_text() for path in [source, *sorted(source.parent.glob("*.h"))]),
        *_FLAGS,
        torch.__version__,
        *platform.libc_ver(),
        made_by,
        stat.st_size,
        stat.st_mtime_ns,
    )
    library = folder / f"{source.stem}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if library.is_file():
        with contextlib.suppress(OSError):  # damaged, or of a system with other libraries
            torch.ops.load_library(str(library))
            return
    build(compiler, source, library)
    torch.ops.load_library(str(library))


def build(compiler: str, source: Path, library: Path) -> None:
    """Make the library. OSError or SubprocessError where that fails."""
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as new:
        made = Path(new) / library.name
        command = [compiler, *_FLAGS, f"-I{torch_folder / 'include'}", str(source), "-o", str(made)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=_SECONDS)
        copy_file(made, library)  # flushed, and whole at once: another start may be looking for it
