"""llama.cpp's own server on a GGUF file, and small models and a tokenizer that leave nothing silent to run there."""

import gc
import json
import random
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from shard.config import Config
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer

pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")

WINDOWED = Config(
    vocab_size=420,  # more than the tokenizer has
    hidden_size=64,
    num_layers=4,
    num_heads=2,
    head_dim=48,  # not hidden_size / num_heads
    intermediate_size=96,
    max_sequence_length=512,
    sliding_window=32,
    layer_pattern="LG",
    rope_theta=5000.0,
    norm_eps=1e-5,
    logit_cap=20.0,
)
SHAPES = {
    "alternating": WINDOWED,
    "two local to a global": replace(WINDOWED, layer_pattern="LLG", num_layers=5, sliding_window=7),
    "global": replace(WINDOWED, layer_pattern="G"),
    "context within the window": replace(WINDOWED, sliding_window=512),
}


class LlamaCpp:
    """A file in llama.cpp's own server on a loopback port, computing in f32: its flash attention rounds K and V to f16
    on a CPU, whatever the type of the cache.
    """

    def __init__(self, path: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.verbosity = -1
        parameters.warmup = parameters.fit_params = parameters.ui = False
        parameters.n_gpu_layers = 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(parameters)
        self.address: str = self.server.listening_address

    def ask(self, route: str, **body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + route, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
        return ids

    def greedy(self, prompt_ids: list[int], num_tokens: int) -> list[int]:
        answer = self.ask(
            "/completion",
            prompt=prompt_ids,
            n_predict=num_tokens,
            temperature=0,
            return_tokens=True,
            cache_prompt=False,
        )
        tokens: list[int] = answer["tokens"]
        return tokens

    def log_probabilities(self, prompt_ids: list[int], num_tokens: int, vocab_size: int) -> tuple[list[int], Tensor]:
        """A greedy continuation and the log-probabilities [T, V] that each of its tokens was chosen from."""
        answer = self.ask(
            "/completion",
            prompt=prompt_ids,
            n_predict=num_tokens,
            temperature=0,
            return_tokens=True,
            cache_prompt=False,
            n_probs=vocab_size,
        )
        steps = answer["completion_probabilities"]
        assert [step["id"] for step in steps] == answer["tokens"], "a token that is half a character has no entry"
        tables = [{entry["id"]: entry["logprob"] for entry in step["top_logprobs"]} for step in steps]
        return answer["tokens"], torch.tensor([[table[i] for i in range(vocab_size)] for table in tables]).double()


@contextmanager
def run(path: Path) -> Iterator[LlamaCpp]:
    server = LlamaCpp(path)
    try:
        yield server
    finally:
        del server.server
        gc.collect()


def make_model(config: Config, tokenizer: Tokenizer) -> ShardLM:
    """A model of which nothing is silent, and that does not repeat itself.

    It chooses ASCII only, since the server says nothing of a token that is half a character, and never the separator.
    """
    torch.manual_seed(0)
    model = ShardLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.normal_(std=0.3)
            elif "output" in name or "down" in name:
                p.normal_(std=0.4)
            elif "query" in name or "key" in name:
                p.normal_(std=0.2)
        model.embedding.weight.normal_(std=0.1)
        for token in range(config.vocab_size):
            if token == 0 or not (text := tokenizer.decode([token])).isascii() or not text:
                model.embedding.weight[token] = 0
    return model


def prompts(number: int) -> list[list[int]]:
    """Ids at random, of lengths below, at and beyond the windows and llama.cpp's own blocks."""
    rng = random.Random(1)
    lengths = [1, 7, 8, 31, 32, 33, 64, 100, 200, 255][-number:]
    return [[rng.randrange(1, 380) for _ in range(length)] for length in lengths]


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer.json of fewer tokens than WINDOWED has."""
    texts = [
        "The quick brown fox, don't you know, jumped 12345 times.\r\n\r\n\tI'LL say: WE'VE  seen   it!!\n",
        "def f(x):\n    return {'a': x + 1, \"b\": [x] * 2}  # comment\n\n\n    if x == 10: pass\n",
        "überall straße 漢字 日本語 مرحبا שלום привет 🙂👍🏽 e\u0301a\u0308 ⅣⅫ ½ ²³\u00a0\u3000 test\u2028 ",
        "<|endoftext|>",
    ]
    path = folder / "tokenizer.json"
    train_tokenizer(texts * 20, 400).save(str(path))
    return path
