"""The decode step's own kernels for the CPU: plain loops in C++ (kernels.cpp), which the machine's own compiler builds
once for its own processor, some seconds long. What is built stays in the user's cache, and torch's threads run it.

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
from torch import Tensor

from shard.environment import NO_COMPILER, compiler_cache, cpp_compiler
from shard.files import copy_file

SOURCE = Path(__file__).with_name("kernels.cpp")

# Sums may be taken in the order that suits the processor; what -ffast-math does besides, to NaN and to every other
# library of the process, is left out.
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")
_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
_SECONDS = 120
# The oldest torch whose stable interface has what kernels.cpp needs: 2.10.
_FLAGS = ("-std=c++20", "-O3", _PROCESSOR, *_MATH, "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000")


@cache
def choose_kernels() -> tuple[bool, str]:
    """(whether the kernels work here, the reason), found out by building them, or finding them built, and a trial."""
    compiler, folder = cpp_compiler(), compiler_cache()
    if compiler is None:
        return False, NO_COMPILER
    if folder is None:
        return False, "the user's cache folder cannot be written"
    name = Path(compiler).name
    try:
        load(compiler, folder / "kernels")
        works = _give_right_results()
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        return False, f"{name} fails ({lines[0].strip() if lines else error.returncode})"
    except subprocess.TimeoutExpired:
        return False, f"{name} does not end within {_SECONDS} s"
    except (OSError, RuntimeError, AttributeError) as error:
        cause = error.__cause__ or error
        return False, f"kernels of {name} cannot be built or loaded ({(str(cause).splitlines() or [repr(cause)])[0]})"
    return works, f"built by {name} for this processor" if works else f"what {name} built gives wrong results"


def load(compiler: str, folder: Path) -> None:
    """Load the library of the folder, made anew where none there can be loaded. OSError or SubprocessError."""
    made_by = Path(compiler).resolve()
    stat = made_by.stat()
    parts = (
        SOURCE.read_text(),
        *_FLAGS,
        torch.__version__,
        *platform.libc_ver(),
        made_by,
        stat.st_size,
        stat.st_mtime_ns,
    )
    library = folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if library.is_file():
        with contextlib.suppress(OSError):  # damaged, or of a system with other libraries
            torch.ops.load_library(str(library))
            return
    build(compiler, library)
    torch.ops.load_library(str(library))


def build(compiler: str, library: Path) -> None:
    """Make the library. OSError or SubprocessError where that fails."""
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as new:
        made = Path(new) / library.name
        command = [compiler, *_FLAGS, f"-I{torch_folder / 'include'}", str(SOURCE), "-o", str(made)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=_SECONDS)
        copy_file(made, library)  # flushed, and whole at once: another start may be looking for it


def _give_right_results() -> bool:
    """A trial of both, on numbers whose results are known."""
    torch.library.register_fake("shard::int8_product", lambda x, codes, scale: x.new_empty(x.size(0), codes.size(0)))
    torch.library.register_fake("shard::decode_attention", lambda q, k, v, seen: torch.empty_like(q))
    codes, scale = torch.full((3, 600), 127, dtype=torch.int8), torch.ones(3, dtype=torch.bfloat16)
    product = int8_product(torch.ones(5, 600), codes, scale)
    slots = torch.arange(120.0).view(1, 1, 3, 40)
    mean = decode_attention(torch.zeros(1, 1, 40), slots, slots, torch.tensor([2]))
    return torch.allclose(product, torch.tensor(76200.0)) and torch.allclose(mean, torch.arange(20.0, 60.0))


def int8_product(x_BI: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x W^T [B, O] in fp32 of W ~ scale * codes, the scale in bf16. x becomes 15-bit whole numbers, a scale a row."""
    return torch.ops.shard.int8_product(x_BI.float().contiguous(), codes_OI, scale_O)


def decode_attention(q_BHK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, seen_B: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v [B, H, K] in fp32, of each row over its first min(seen, S) slots; k, v contiguous."""
    return torch.ops.shard.decode_attention(q_BHK.float().contiguous(), k_BHSK, v_BHSK, seen_B)
