"""`shard generate`: a loaded model and how to sample from it; one prompt, a file of them, or a conversation."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shard.environment import choose_compile, choose_device
from shard.errors import UsageError
from shard.inference.decoder import Decoder
from shard.inference.generate import continue_prompt, continue_prompts
from shard.inference.kernels import choose_kernels
from shard.inference.load import LoadedModel, load_in_precision
from shard.inference.sampling import generate_ids
from shard.inference.text import TextStream, stream_text

BATCH_ROWS = 8
"""Prompts of a file that are continued side by side: as many as torch's int8 kernel is made for."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a text is continued."""

    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stops: Sequence[str] = ()
    """Strings that end a text, which ends before them."""


@dataclass(frozen=True)
class Session:
    """A model and the settings of its sampling; without a decoder the plain published loop."""

    loaded: LoadedModel
    sampling: Sampling
    decoder: Decoder | None

    @classmethod
    def open(
        cls, path: Path, dtype: str, sampling: Sampling, use_cache: bool = True, compile: bool = False
    ) -> "Session":
        """Load the model. Raises UsageError for an unknown dtype, an empty stop string, or int8 on a GPU.

        Compiling is asked for, never chosen: for the 54.5M model in int8 it cost 32 s the first time and 4 s later,
        and saved 2 ms a token, so that it pays after some thousand tokens.
        """
        if "" in sampling.stops:
            raise UsageError("--stop is empty: give the text to stop before")
        if compile and not use_cache:
            raise UsageError("--compile and --no-cache exclude each other: the plain loop stays as it was published")
        device = choose_device()
        loaded = load_in_precision(path, dtype, device)
        if dtype == "int8" and not choose_kernels()[0]:
            print(f"! {choose_kernels()[1]}: int8 runs on torch's slower kernel", file=sys.stderr)
        if not use_cache:
            return cls(loaded, sampling, None)
        if compile and device.type != "cuda":
            compile, reason = choose_compile(device)
            if not compile:
                print(f"! {reason}: decoding without it", file=sys.stderr)
        return cls(loaded, sampling, Decoder(loaded.model, compile))

    def stream(self, prompt: str) -> Iterator[str]:
        """The prompt and its continuation, in pieces. UsageError for a prompt that is no text, or fills the context."""
        ids, s = self._encode(prompt), self.sampling
        if self.decoder is None:
            new = generate_ids(
                self.loaded.model, ids, s.max_tokens, s.temperature, s.top_p, s.seed, stop_id=None, use_cache=False
            )
        else:
            stop_id = self.loaded.separator_id
            new = continue_prompt(self.decoder, ids, s.max_tokens, s.temperature, s.top_p, s.seed, stop_id)
        return stream_text(self.loaded.tokenizer, ids, new, s.stops)

    def complete(self, prompts: Sequence[str]) -> Iterator[dict[str, str]]:
        """{"prompt", "text"} of each prompt in turn, as `stream` would give it; BATCH_ROWS are decoded at a time."""
        encoded = [self._encode(prompt) for prompt in prompts]  # every mistake is found before any work
        for first in range(0, len(prompts), BATCH_ROWS):
            rows = slice(first, first + BATCH_ROWS)
            if self.decoder is None:
                texts = ["".join(self.stream(prompt)) for prompt in prompts[rows]]
            else:
                texts = self._complete_rows(self.decoder, encoded[rows])
            for prompt, text in zip(prompts[rows], texts, strict=True):
                yield {"prompt": prompt, "text": text}

    def _complete_rows(self, decoder: Decoder, rows: list[list[int]]) -> list[str]:
        s = self.sampling
        streams = [TextStream(self.loaded.tokenizer, s.stops) for _ in rows]
        texts = [stream.begin(ids) for stream, ids in zip(streams, rows, strict=True)]
        ended: set[int] = set()
        for tokens in continue_prompts(
            decoder, rows, s.max_tokens, s.temperature, s.top_p, s.seed, self.loaded.separator_id, ended
        ):
            for row, token in enumerate(tokens):
                if token is not None:
                    texts[row] += streams[row].push(token)
                    if streams[row].stopped:
                        ended.add(row)
        return [text + stream.finish() for text, stream in zip(texts, streams, strict=True)]

    def _encode(self, prompt: str) -> list[int]:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError("the prompt is not Unicode text: set the terminal and its locale to UTF-8") from None
        ids = self.loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [self.loaded.separator_id]
        context = self.loaded.model.config.max_sequence_length
        if len(ids) >= context:
            raise UsageError(f"the prompt has {len(ids)} tokens and the model's context is {context}: shorten it")
        return ids

    def chat(self) -> None:
        """Ask for prompts until Ctrl-D; Ctrl-C ends a text, not the program."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  line editing and history, where the platform has it
        print(f"{self.loaded.origin}: a base model, it continues your text. Ctrl-C stops a text, Ctrl-D ends.")
        while True:
            try:
                prompt = input("> ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                continue
            try:
                for piece in self.stream(prompt):
                    print(piece, end="", flush=True)
                print()
            except KeyboardInterrupt:
                print()
            except UsageError as error:
                print(f"shard: {error}")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: of .jsonl the key "prompt" of each line, else each line that is not blank. UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--prompts {path}: {reason}") from None
    prompts: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt: object = line
        if path.suffix == ".jsonl":
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError, RecursionError):
                prompt = None
        if not isinstance(prompt, str):
            raise UsageError(f'--prompts {path}: line {number} is not {{"prompt": "text"}}')
        prompts.append(prompt)
    if not prompts:
        raise UsageError(f"--prompts {path}: it holds no prompt")
    return prompts
