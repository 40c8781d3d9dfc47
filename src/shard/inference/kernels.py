"""The decode step's own kernels for the CPU: plain loops in C++ (kernels.cpp), which the machine's own compiler builds
once for its own processor, some seconds long. What is built stays in the user's cache, and torch's threads run it.

Every caller has torch's kernel to go back to, where there is no compiler.
"""

import hashlib
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from shard.environment import NO_COMPILER, compiler_cache, cpp_compiler

SOURCE = Path(__file__).with_name("kernels.cpp")

# Sums may be taken in the order that suits the processor; what -ffast-math does besides, to NaN and to every other
# library of the process, is left out.
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")
_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
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
        torch.ops.load_library(str(build(compiler, folder / "kernels")))
    except subprocess.CalledProcessError as error:
        return False, f"{name} fails ({(error.stderr.strip().splitlines() or [error.returncode])[0]})"
    except OSError as error:
        return False, f"what {name} built cannot be loaded ({str(error).splitlines()[0]})"
    torch.library.register_fake("shard::int8_product", lambda x, codes, scale: x.new_empty(len(x), len(codes)))
    torch.library.register_fake("shard::decode_attention", lambda q, k, v, seen: torch.empty_like(q))
    codes, ones = torch.full((3, 40), 127, dtype=torch.int8), torch.ones(3, dtype=torch.bfloat16)
    product = int8_product(torch.ones(2, 40), codes, ones)
    slots = torch.arange(120.0).view(1, 1, 3, 40)
    mean = decode_attention(torch.zeros(1, 1, 40), slots, slots, torch.tensor([2]))
    if not (torch.allclose(product, torch.tensor(5080.0)) and torch.allclose(mean, torch.arange(20.0, 60.0))):
        return False, f"what {name} built gives wrong results"
    return True, f"built by {name} for this processor"


def build(compiler: str, folder: Path) -> Path:
    """The library in the folder: found there, or made. OSError or CalledProcessError where that fails."""
    torch_folder = Path(torch.__file__).parent
    made_of = "\n".join((SOURCE.read_text(), *_FLAGS, torch.__version__, compiler))
    library = folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        made = Path(new) / library.name
        command = [compiler, *_FLAGS, f"-I{torch_folder / 'include'}", str(SOURCE), "-o", str(made)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, capture_output=True, text=True, check=True)
        made.replace(library)  # whole at once: another start may be looking for it
    return library


def int8_product(x_BI: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x W^T [B, O] in fp32 of W ~ scale * codes, the scale in bf16. x becomes 15-bit whole numbers, a scale a row."""
    return torch.ops.shard.int8_product(x_BI.float().contiguous(), codes_OI, scale_O)


def decode_attention(q_BHK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, seen_B: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v [B, H, K] in fp32, of each row over its first min(seen, S) slots; k, v contiguous."""
    return torch.ops.shard.decode_attention(q_BHK.float().contiguous(), k_BHSK, v_BHSK, seen_B)
