"""Decoding of the reference model, batch 1, 256 tokens: against transformers' `generate` and against llama.cpp.

    python benchmarks/decode.py                  five rounds of all sides in turns
    python benchmarks/decode.py --compile        Shard's step as one compiled function, on CUDA as a captured graph

All sides have the same weights (random: what they say does not change the time), the same prompt and as many threads.
Shard runs as `shard generate` does. transformers runs our export with its defaults. llama.cpp runs our GGUF files in
its own server (package xllamacpp) on a CPU, and its time is the one that it gives itself, without the way to it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard.environment import set_process_defaults

set_process_defaults()

import torch

from paired import measure, ratio, spread, words
from shard.config import Config
from shard.environment import choose_device, device_name
from shard.inference.benchmark import precisions, timed
from shard.inference.decoder import Decoder
from shard.inference.generate import continue_prompt
from shard.inference.quantize import quantize
from shard.model import ShardLM
from shard.release.gguf import export_gguf
from shard.release.hugging_face import export_hugging_face
from shard.tokenizer import train_tokenizer

PROMPT = list(range(10, 26))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
Side = Callable[[], float]
"""Decodes once: seconds."""


def shard_side(model: ShardLM, name: str, tokens: int, compiled: bool) -> Side:
    """Our decoder in one precision."""
    device = choose_device()
    copy = ShardLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(device, DTYPES[name]).eval().requires_grad_(False)
    decoder = Decoder(quantize(copy) if name == "int8" else copy, compiled)
    return lambda: timed(lambda: list(continue_prompt(decoder, PROMPT, tokens)), device)


def transformers_side(folder: Path, name: str, tokens: int) -> Side:
    """`generate` with its defaults, greedy, which nothing ends early."""
    from transformers import AutoModelForCausalLM

    device = choose_device()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[name]).to(device).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.tensor([PROMPT], device=device)

    def generate() -> None:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        assert out.size(1) == len(PROMPT) + tokens

    return lambda: timed(generate, device)


def llama_side(path: Path, tokens: int) -> Side:
    """llama.cpp's server on a file, with as many threads as torch has, in a process of its own: two that use OpenMP in
    one process count each other's threads, and then none waits for work awake (measured: torch's side twice as slow).
    """
    command = [sys.executable, __file__, "--serve", str(path), "--threads", str(torch.get_num_threads())]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(line for line in server.stdout if line.startswith("http")).strip()

    def generate() -> float:
        body = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            timings: dict[str, Any] = json.load(response)["timings"]
        assert timings["predicted_n"] == tokens
        return (timings["prompt_ms"] + timings["predicted_ms"]) / 1000

    return generate


def serve(path: Path, threads: int) -> None:
    """Print the address of a server on a file, and serve until the input ends, as it does with the parent."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.verbosity = -1
    parameters.fit_params = parameters.ui = False
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # it has no end of its own that does not wait for its threads


def make_sides(folder: Path, config: Config, tokens: int, compiled: bool) -> dict[str, Side]:
    """Every side that this machine has."""
    torch.manual_seed(0)
    model = ShardLM(config)
    for p in model.parameters():
        if p.ndim == 2 and not p.any():
            torch.nn.init.normal_(p, std=0.02)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer = folder / "tokenizer.json"
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sources]
    train_tokenizer(texts, config.vocab_size).save(str(tokenizer))
    device = choose_device()
    sides = {
        f"Shard {name}": shard_side(model, name, tokens, compiled) for name in precisions(device) if name != "fp16"
    }
    for name in ("fp32", "bf16"):
        export_hugging_face(model.state_dict(), config, tokenizer, folder / name, name)
        sides[f"transformers {name}"] = transformers_side(folder / name, name, tokens)
    if device.type == "cpu":
        for name in ("bf16", "q8_0"):
            path = export_gguf(model.state_dict(), config, tokenizer, folder / f"{name}.gguf", name, "benchmark")
            sides[f"llama.cpp {name}"] = llama_side(path, tokens)
    return sides


def main() -> None:
    """Measure and print one JSON object, then lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Config(num_layers=arguments.layers)
        sides = make_sides(Path(folder), config, arguments.tokens, arguments.compile)
        seconds = measure(sides, arguments.pairs, seconds_of=lambda decode: decode())
    against = {
        f"{ours} against {theirs}": ratio(seconds[theirs], seconds[ours])
        for ours, theirs in (
            ("Shard fp32", "transformers fp32"),
            ("Shard bf16", "transformers bf16"),
            ("Shard bf16", "llama.cpp bf16"),
            ("Shard int8", "llama.cpp q8_0"),
        )
        if ours in sides and theirs in sides
    }
    result = {
        "device": device_name(choose_device()),
        "threads": torch.get_num_threads(),
        "compiled": arguments.compile,
        "tokens": arguments.tokens,
        "tokens_per_second": {name: arguments.tokens / statistics.median(times) for name, times in seconds.items()},
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "speed": against,
    }
    print(json.dumps(result, indent=2))
    for name, speed in result["tokens_per_second"].items():
        print(f"{name}: {speed:,.0f} tokens/s")
    for name, value in against.items():
        print(f"{name}: {words(value)} times the speed")


if __name__ == "__main__":
    main()
