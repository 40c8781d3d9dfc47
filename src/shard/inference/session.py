"""`shard generate`: a loaded model and how to sample from it; one prompt, or a conversation with a base model."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shard.environment import choose_device
from shard.errors import UsageError
from shard.inference.load import LoadedModel, load_model
from shard.inference.sampling import generate_ids, stream_text
from shard.training.decisions import DTYPES


@dataclass(frozen=True)
class Session:
    """A model and the settings of its sampling."""

    loaded: LoadedModel
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    use_cache: bool

    @classmethod
    def open(
        cls, path: Path, dtype: str, max_tokens: int, temperature: float, top_p: float, seed: int, use_cache: bool
    ) -> "Session":
        """Load the model. Raises UsageError for an unknown dtype."""
        if dtype not in DTYPES:
            raise UsageError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
        loaded = load_model(path, DTYPES[dtype], choose_device())
        return cls(loaded, max_tokens, temperature, top_p, seed, use_cache)

    def stream(self, prompt: str) -> Iterator[str]:
        """The prompt and its continuation, in pieces. UsageError for a prompt that is no text, or fills the context."""
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError("the prompt is not Unicode text: set the terminal and its locale to UTF-8") from None
        ids = self.loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [self.loaded.separator_id]
        context = self.loaded.model.config.max_sequence_length
        if len(ids) >= context:
            raise UsageError(f"the prompt has {len(ids)} tokens and the model's context is {context}: shorten it")
        new = generate_ids(
            self.loaded.model,
            ids,
            self.max_tokens,
            self.temperature,
            self.top_p,
            self.seed,
            stop_id=self.loaded.separator_id if self.use_cache else None,
            use_cache=self.use_cache,
        )
        return stream_text(self.loaded.tokenizer, ids, new)

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
