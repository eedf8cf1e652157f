"""How much memory a training takes on one device, by arithmetic.

Counted is what torch allocates for tensors, at the fullest moment of a step. CUDA's context, NCCL and what an allocator
loses between blocks come on top.

Letters: D decoder width, K width of keys, F of the feed-forward network, V vocabulary, L layers, Dv tower width.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobillama_v.config import DecoderConfig, ModelConfig
from mobillama_v.model.vision import TowerShape
from mobillama_v.train.recipe import LoraSection, TrainSection

_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, elements
_LIVE = 1_000_000_000  # its stage3_max_live_parameters


@dataclass(frozen=True)
class BatchShape:
    """The largest batch of a device."""

    rows: int
    length: int
    """Positions of a row, padding included."""
    supervised: int
    """Positions of all rows that get logits."""
    images: int
    cached: bool = False
    """Whether the tower's outputs are read and it does not run."""
    packed: bool = False
    """Whether a row holds several samples, none of which attends to another."""

    @property
    def mask(self) -> int:
        """Elements of attention's mask; packs have none."""
        return 0 if self.packed else self.rows * self.length**2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; ``peak`` is less than their sum where they are not there at the same time."""

    weights: int
    gradients: int
    states: int
    activations: int
    logits: int
    buffers: int
    peak: int


@dataclass(frozen=True)
class Counts:
    """Parameters of each part of a model: all of them, and those that learn."""

    all: dict[str, int]
    learning: dict[str, int]

    @classmethod
    def of(cls, spec: ModelConfig, train: TrainSection) -> Counts:
        """Those of ``spec`` in a training."""
        parts = spec.params_by_part()
        counts = {
            "projector": parts["projector"],
            "decoder": spec.decoder.num_params(),
            "tower": parts["tower"],
        }
        learning = {part: counts[part] for part in train.modules.learning()}
        if train.lora is not None:
            learning["decoder"] = adapter_parameters(spec.decoder, train.lora)
            counts["decoder"] += learning["decoder"]
        return cls(counts, learning)


def _widths(spec: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the decoder's linear layers."""
    hidden, inner, queries, kv = spec.hidden_size, spec.intermediate_size, spec.query_width, spec.key_width
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def adapter_parameters(spec: DecoderConfig, lora: LoraSection) -> int:
    """Parameters of all adapters: one for each linear layer, so a single one for each of a shared network."""
    widths, total = _widths(spec), 0
    for target in lora.targets:
        shared = spec.ffn_sharing == "all" and target in ("gate_proj", "up_proj", "down_proj")
        total += sum(widths[target]) * lora.rank * (1 if shared else spec.num_hidden_layers)
    return total


def estimate(spec: ModelConfig, train: TrainSection, batch: BatchShape, *, devices: int, accumulation: int) -> Memory:
    """Memory of a training step on each of ``devices``."""
    counts = Counts.of(spec, train)
    zero, _, offload = (train.deepspeed or "").partition("-")
    stage = int(zero.removeprefix("zero")) if zero else 0
    half = bool(stage) and train.precision != "fp32"
    size = 2 if half else 4  # bytes of a weight that the model computes with
    total, learning = sum(counts.all.values()), sum(counts.learning.values())
    share = -(-learning // devices) if stage else learning
    moments = share * (4 if train.optimizer == "muon" else 8)
    states = 0 if offload else moments + (4 * share if half else 0)
    weights = total * size
    gradients = size * (share if stage >= 2 else learning)
    buffers = 0
    if stage == 3:
        weights = 0 if offload else -(-weights // devices)
        buffers = min(total, _LIVE) * size + (_BUCKET * size if devices > 1 or stage else 0)
    elif stage:
        buffers = 2 * _BUCKET * size
    elif devices > 1:
        buffers = gradients  # DDP's buckets
    saved, passing = activations(spec, train, batch)
    logits = 12 * batch.supervised * spec.decoder.vocab_size  # fp32: log-probabilities, their gradient, the logits'
    held = weights + states + buffers
    if stage:
        peak = held + gradients + max(saved + max(logits, passing), 0 if offload or not half else 4 * share)
    elif accumulation > 1:
        peak = held + gradients + saved + max(logits, passing)
    else:  # gradients come as activations go
        early = _early_gradients(spec.decoder, train)
        peak = held + max(saved + logits, saved + early + passing, gradients)
    return Memory(weights, gradients, states, saved, logits, buffers, peak)


def _early_gradients(spec: DecoderConfig, train: TrainSection) -> int:
    """Gradients that are there when the last layer has been gone back through: of the head, and of the network.

    A shared network's next gradient is made before it is added to the last.
    """
    if train.modules.decoder is None or train.lora is not None:
        return 0
    network = 3 * spec.hidden_size * spec.intermediate_size
    return 4 * (spec.vocab_size * spec.hidden_size + network + network // 3 * (spec.ffn_sharing == "all"))


def activations(spec: ModelConfig, train: TrainSection, batch: BatchShape) -> tuple[int, int]:
    """Bytes that the forward pass keeps for the backward pass, and those that pass by while a layer goes back."""
    decoder, tokens = spec.decoder, batch.rows * batch.length
    size = 4 if train.precision == "fp32" else 2
    hidden, inner, layers = decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers
    stream = hidden * (2 if size == 2 and train.deepspeed else 4)  # under autocast the residual stream is fp32
    block = tokens * _block(decoder, train, size, stream, packed=batch.packed) + batch.mask * size
    passing = tokens * size * (3 * inner + 2 * hidden)
    kept = layers * block
    if train.gradient_checkpointing:
        kept = layers * tokens * stream + block
    if size == 2 and not train.deepspeed:
        kept += _casts(decoder, train)
    ends = tokens * (3 * stream) + batch.supervised * hidden * size  # final norm, and what the head reads
    kept += ends + batch.mask
    shape = spec.tower_shape()
    kept += batch.images * shape.patches * size * (shape.width + 2 * hidden)  # projector
    if batch.cached:
        return kept, passing
    return kept + _tower(shape, train, batch.images, size), passing


def _block(spec: DecoderConfig, train: TrainSection, size: int, stream: int, *, packed: bool) -> int:
    """Bytes that one decoder layer keeps for a position, attention's mask aside."""
    hidden, inner, queries, kv = spec.hidden_size, spec.intermediate_size, spec.query_width, spec.key_width
    attention = size * 2 * (queries + kv) + 4 * spec.num_attention_heads  # q, k, v, output; log-sums
    attention += (queries + kv) * (4 + 2 * size) * spec.qk_norm  # as they were, in fp32 and normalized
    whole = train.modules.decoder is not None and train.lora is None
    if whole:
        normalized = stream if size == 4 or not train.deepspeed else hidden * size
        norms = 2 * (4 * hidden + normalized + hidden * size)
        joined = size * queries * packed  # what each sample's attention gives, and all of it in a row for o_proj
        return norms + attention + joined + size * 4 * inner
    frozen = 8 * hidden + attention + size * 3 * inner  # a frozen layer keeps no input
    if train.lora is None:
        return frozen
    widths, targets = _widths(spec), train.lora.targets
    frozen += size * train.lora.rank * len(targets)
    if train.lora.dropout:  # each adapter has an input of its own, and which of it was dropped
        return frozen + sum(widths[target][0] * (size + 1) for target in targets)
    # The input of o_proj is kept by attention (but for packs); q, k and v share theirs, and so do gate and up.
    shares = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    inputs = {shares.get(target, target) for target in targets} - (set() if packed else {"o_proj"})
    return frozen + size * sum(widths[each][0] for each in inputs)


def _casts(spec: DecoderConfig, train: TrainSection) -> int:
    """Bytes of the bf16 weights that autocast makes and keeps: once of what learns, for each use of what is frozen."""
    parts = spec.params_by_part()
    attention, network, layers = parts["attention"], parts["feed-forward"], spec.num_hidden_layers
    if train.modules.decoder is None or train.lora is not None:
        network *= layers if spec.ffn_sharing == "all" else 1
        if train.gradient_checkpointing:  # those of one layer at a time
            attention, network = attention // layers, network // layers
    return 2 * (attention + network + parts["head"])


def _tower(shape: TowerShape, train: TrainSection, images: int, size: int) -> int:
    """What the tower keeps where it learns; where it is frozen, nothing stays once it has run."""
    if train.modules.tower is None:
        return 0
    blocks = shape.parameters / (12 * shape.width**2)
    return int(images * (shape.patches + shape.prefix) * size * 20 * shape.width * blocks)
