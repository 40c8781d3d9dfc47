"""The machine: device, threads, precision, compiler, versions, and the switches that make torch repeat itself."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NO_COMPILER = "no C++ compiler was found (apt install g++, or xcode-select --install)"


def set_process_defaults() -> None:
    """Environment variables that torch reads when it is imported: call it before.

    MKL_DYNAMIC=FALSE keeps the number of threads of a product from changing under load, and with it the order of
    its sums. CUBLAS_WORKSPACE_CONFIG does the same on CUDA. What torch.compile made is kept for the next start, also of
    graphs with functions that bring their own backward pass: torch leaves those out of the cache as they might read
    what no graph shows, which ours do not (tests/training/test_compiler_cache.py).
    """
    # torchrun gives each of its processes one thread where nothing is said; the ranks divide the cores themselves.
    if num_ranks() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")
    if cache := compiler_cache():
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def compiler_cache() -> Path | None:
    """Where torch.compile keeps its code: in the user's cache folder, since /tmp is emptied and open to others. None
    where that cannot be written; torch then takes /tmp.

    Code is made for the processor at hand, and torch finds it again by its source alone; a home folder may be shared
    by several machines. So each kind of processor has a folder.
    """
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    except RuntimeError:  # no home folder
        return None
    if not os.access(next(path for path in (caches, *caches.parents) if path.exists()), os.W_OK):
        return None
    kinds = ("model name", "flags", "Features", "CPU part")
    kind = [platform.machine(), *(line for line in _cpuinfo() if line.startswith(kinds))]
    return caches / "shard" / "compiled" / hashlib.sha256("\n".join(dict.fromkeys(kind)).encode()).hexdigest()[:12]


def _cpuinfo() -> list[str]:
    """What Linux says of the first processor: a machine may have hundreds, and every start asks."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return []
    with path.open() as file:
        return [line.rstrip("\n") for line in takewhile(str.strip, file)]


def num_ranks() -> int:
    """How many processes were started to train together, by torchrun or in its way; 1 is an ordinary run."""
    given = all(os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if given else 1


def count_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_deterministic(seed: int) -> None:
    """Let torch use only kernels that repeat bit for bit, and seed its generators."""
    import torch

    torch.use_deterministic_algorithms(True)
    # Filling fresh memory costs time and only matters to code that reads what it never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


def choose_device() -> "torch.device":
    """CUDA where there is one, then MPS, then the CPU. SHARD_DEVICE overrides."""
    import torch

    if name := os.environ.get("SHARD_DEVICE"):
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(device: "torch.device") -> tuple[str, str]:
    """("bf16", "fp16" or "fp32", the reason) for `precision = "auto"` on this device."""
    import torch

    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes bf16 natively"
        return "fp16", "the GPU has no native bf16: fp16 with a loss scale"
    if device.type == "mps":
        return "fp32", "bf16 was not tried on MPS"
    # What the processor can do, not a timing: a busy machine must not change what a run computes in. Without AMX,
    # bf16 products were measured at half the speed of fp32 ones on a CPU that has avx512_bf16.
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return "bf16", "this CPU multiplies bf16 matrices natively (AMX)"
    return "fp32", "this CPU has no AMX, and bf16 products would be slower than fp32 ones"


def cpp_compiler() -> str | None:
    """The path of a C++ compiler: that of CXX, else the first of c++ and g++."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def choose_compile(device: "torch.device") -> tuple[bool, str]:
    """(whether torch.compile works here, the reason), found out by compiling a small function.

    Trying is the only sure test: a missing compiler shows itself at the first call, not at torch.compile().
    """
    import torch

    if device.type == "mps":
        return False, "torch.compile was not tried on MPS"
    if device.type == "cpu" and not cpp_compiler():
        return False, NO_COMPILER
    try:
        x = torch.ones(8, device=device)
        compiled = torch.compile(lambda x: (x * 2 + 1).cos())
        if not torch.allclose(compiled(x), (x * 2 + 1).cos(), atol=1e-4):
            return False, "torch.compile gave a wrong result for a small function"
    except Exception as error:  # any failure of the compiler's tool chain means: do without it
        return False, f"torch.compile fails here ({str(error).strip().splitlines()[0][:100]})"
    return True, "torch.compile works here"


def memory_bytes(device: "torch.device") -> int:
    """Memory in use by this process: allocated on the GPU, or resident on the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: "torch.device") -> int:
    """Memory that a process could still take: of the GPU, or main memory without swapping."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return total_memory() // 2


def total_memory() -> int:
    """Main memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(device: "torch.device") -> str:
    """What the device calls itself, for the card."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.processor()})"
    name = platform.processor() or platform.machine()
    for line in _cpuinfo():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"CPU: {name}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    import importlib.metadata  # not at the top: it is slow to import, and `shard --help` needs none of it

    names = ("torch", "numpy", "tokenizers", "tokie", "safetensors", "pyarrow", "pydantic")
    return {
        "shard": importlib.metadata.version("shard-lm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def code_revision() -> str | None:
    """The git revision of the checkout that Shard runs from, with a + where it was changed; None if installed."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not (folder.parent.parent / ".git").exists():
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def environment(device: "torch.device") -> dict[str, Any]:
    """What the manifest and the card say about where a run ran."""
    import torch

    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": total_memory(),
        "versions": versions(),
        "code_revision": code_revision(),
    }
