"""The smallest recipe that goes through every stage, and the command in this process."""

from shard.cli import main

TINY = {
    "model": "{vocab_size = 300, hidden_size = 32, num_layers = 2, num_heads = 2, head_dim = 16, "
    "intermediate_size = 64, max_sequence_length = 128, sliding_window = 8}",
    "tokenizer.sample_bytes": "100kB",
    "pretrain.steps": "4",
    "pretrain.sequence_length": "32",
    "pretrain.tokens_per_step": "128",
    "pretrain.warmup_steps": "1",
    "pretrain.micro_batch": "2",
    "pretrain.compile": "off",
    "pretrain.precision": "fp32",
    "pretrain.checkpoint_every": "1",
    "pretrain.keep_last": "10",
    "pretrain.evaluate_every": "2",
    "pretrain.evaluate_bytes": "1kB",
    "pretrain.sample_every": "100",
    "pretrain.sample_prompts": '["The "]',
    "pretrain.sentinel_every": "100",
    "anneal.steps": "3",
    "anneal.sequence_length": "32",
    "evaluate.max_items": "11",
    "release.prompts": '["The capital of France is", "a b"]',
}
"""The quickstart, shrunk until a run takes about a second."""


def call(*arguments: object) -> int:
    """The exit code of `shard ARGUMENTS`, run in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0
