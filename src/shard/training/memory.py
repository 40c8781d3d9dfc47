"""How much memory a stage of training will take at its peak, before it begins: by counting the tensors that live then.

    peak = process + weights + optimizer state + copy for a checkpoint + max(backward pass, update)

The backward pass begins with everything that the forward pass kept; the update holds all gradients and what Muon makes
of its largest stack of matrices. `benchmarks/memory.py` holds this against measurements.
"""

from dataclasses import dataclass

from shard.config import Config
from shard.muon import stack_elements
from shard.training.chunks import chunk_tokens
from shard.training.cost import checkpoint_bytes, count_parameters
from shard.training.settings import StageSettings

PROCESS_BYTES = {False: 360e6, True: 600e6}
"""Of a process on a CPU, beside its tensors: the interpreter, torch and its libraries, and what the compiler leaves
behind. Not compiled, that of one which trained a model of next to no size; compiled, what brings the sums for 7M, 25M
and 54.5M parameters nearest to the measured peaks. Linux."""

UPDATE_COPIES = 6
"""Of the largest stack of equal matrices, at once in fp32: gradients, directions, stack, two iterates, update."""

CHUNK_COPIES = {False: 6, True: 3}
"""Of the logits of a chunk of the loss, in fp32 (not compiled, compiled)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of each part."""

    process: int
    state: int
    """Weights and optimizer state; in main memory twice where checkpoints are copied there."""
    gradients: int
    """Those of the micro-batches before, while one is computed."""
    activations: int
    """What a micro-batch keeps for its backward pass, and what the backward pass of a layer adds."""
    update: int
    """Gradients and the copies of the largest stack, while the weights move."""

    @property
    def peak(self) -> int:
        """Of all."""
        return self.process + self.state + max(self.gradients + self.activations, self.update)


def predict_memory(
    config: Config, settings: StageSettings, micro_batch: int, precision: str, compiled: bool, device: str
) -> TrainingMemory:
    """The memory of a stage on a device of this type: main memory on a CPU, else that of the device."""
    count = count_parameters(config)
    tokens = micro_batch * settings.sequence_length
    rows = settings.tokens_per_step // settings.sequence_length
    on_cpu = device == "cpu"
    gradients = 4 * count.total
    num_experts = 1 if config.mixture is None else config.mixture.num_experts
    matrix = num_experts * config.hidden_size * config.intermediate_size
    largest_stack = min(2 * config.num_layers * matrix, max(stack_elements(device), matrix))
    return TrainingMemory(
        process=int(PROCESS_BYTES[compiled]) if on_cpu else 0,
        state=checkpoint_bytes(config) * (2 if on_cpu else 1),
        gradients=gradients if micro_batch < rows else 0,
        activations=activation_bytes(config, tokens, precision, compiled, settings.recompute == "layer", device),
        update=gradients + UPDATE_COPIES * 4 * largest_stack,
    )


def inner_width(config: Config) -> int:
    """Of the feed-forward layer of a token; of a mixture, all the experts that compute it side by side."""
    mixture = config.mixture
    return config.intermediate_size * (1 if mixture is None else mixture.top_k + mixture.num_shared)


def layer_bytes(config: Config, precision: str, compiled: bool) -> int:
    """What a layer keeps of a token for its backward pass.

    Two norms keep the stream and their result, and where nothing is fused both the stream and x_hat in fp32. Attention
    keeps queries, keys, values and what it makes of them; the feed-forward layer gate, up, their product, and the SiLU
    of gate where that is not computed again.
    """
    hidden, inner, width = config.hidden_size, inner_width(config), config.num_heads * config.head_dim
    size = 4 if precision == "fp32" else 2
    if compiled:
        return size * (4 * hidden + 4 * width + 3 * inner)
    return 2 * hidden * (4 + 4 + size) + size * (4 * width + 4 * inner)


def activation_bytes(
    config: Config, tokens: int, precision: str, compiled: bool, recompute: bool, device: str = "cpu"
) -> int:
    """What the backward pass of a micro-batch of so many tokens holds at its peak.

    With `recompute` only the stream is kept of every layer, and all of one layer at a time. Products keep their weights
    in the compute dtype.
    """
    count = count_parameters(config)
    hidden, inner = config.hidden_size, inner_width(config)
    size = 4 if precision == "fp32" else 2
    layer = layer_bytes(config, precision, compiled)
    kept = config.num_layers * size * hidden + layer if recompute else config.num_layers * layer
    backward = size * (4 * inner + 2 * hidden)
    head = size * 3 * hidden
    chunk = min(chunk_tokens(config.vocab_size, device), tokens) * config.vocab_size
    loss = CHUNK_COPIES[compiled] * 4 * chunk + 4 * count.embedding
    cast = 0 if precision == "fp32" else size * (count.matrix + count.embedding)
    table_gradient = 4 * count.embedding
    return tokens * (kept + head) + table_gradient + cast + max(tokens * backward, loss)
