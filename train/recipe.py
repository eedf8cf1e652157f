"""Typed training recipes: their keys, and what of their values goes together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mobillama_v.errors import RecipeError
from mobillama_v.prompt import TEMPLATES


def _help(text: str, **options: Any) -> Any:
    return field(metadata={"help": text}, **options)


@dataclass(frozen=True)
class DataFile:
    """One file of records in a mix."""

    path: str = _help("JSON or JSON lines file of records")
    repeat: int = _help("how many times each of its records is seen in an epoch", default=1)


@dataclass(frozen=True)
class ModelSection:
    """What training starts from."""

    start: str = _help(
        "folder with config.json, tokenizer.json and weights; without weights, a fresh model of that config", default=""
    )


@dataclass(frozen=True)
class DataSection:
    """What is learned from, and how it is turned into tokens."""

    json: tuple[DataFile, ...] = _help("files of records, mixed and shuffled by the seed", default=())
    image_root: str = _help("folder that image paths are relative to", default=".")
    template: str = _help("conversation template: plain is image and caption, v1 a chat", default="v1")
    image_mode: Literal["pad", "crop", "squash"] | None = _help(
        "how images are made square, from here on in the model's config; null: as it says already", default=None
    )
    max_length: int | None = _help("tokens of a sample, images included; null: the model's context", default=None)
    features: str | None = _help(
        "folder of the frozen tower's cached outputs, filled when it is missing; null: the tower runs at each step",
        default=None,
    )
    skip_bad: bool = _help("train without records that cannot be learned from, instead of refusing them", default=False)
    duplicates: Literal["refuse", "keep"] = _help(
        "whether exact duplicates of a record count as bad; keep learns from them as often as they come",
        default="refuse",
    )
    check_images: Literal["decode", "exists"] = _help(
        "before the first step: decode every image, or only look whether its file exists", default="decode"
    )


@dataclass(frozen=True)
class ModulesSection:
    """Peak learning rate of each part that learns; null freezes it."""

    projector: float | None = _help("between tower and decoder", default=None)
    decoder: float | None = _help("the language model and its head", default=None)
    embeddings: float | None = _help("token embeddings and head, where they differ from the decoder", default=None)
    tower: float | None = _help("the image tower", default=None)

    def learning(self) -> dict[str, float]:
        """The parts that learn, with their learning rates; embeddings are no part of their own."""
        rates = asdict(self)
        del rates["embeddings"]
        return {name: lr for name, lr in rates.items() if lr is not None}


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The decoder's linear layers; the last three are those of the (shared) feed-forward network."""


@dataclass(frozen=True)
class LoraSection:
    """Adapters beside the decoder's linear layers, which learn in the place of its weights."""

    rank: int = _help("width of an adapter", default=128)
    alpha: float = _help("an adapter's product is scaled by alpha / rank", default=256.0)
    dropout: float = _help("of an adapter's input", default=0.05)
    targets: tuple[str, ...] = _help("linear layers that get one; a shared network has one", default=LORA_TARGETS)


@dataclass(frozen=True)
class TrainSection:
    """How it is learned."""

    modules: ModulesSection = field(default_factory=ModulesSection, metadata={"help": "what learns"})
    lora: LoraSection | None = field(
        default=None,
        metadata={"help": "adapters learn instead of the decoder's weights, at train.modules.decoder; {}: as below"},
    )
    batch_size: int = _help("samples of one forward pass on one device", default=32)
    pack_tokens: int | None = _help(
        "instead of batch_size, as many samples in a forward pass as these tokens hold, without padding; none attends "
        "to another",
        default=None,
    )
    gradient_accumulation: int = _help("forward passes of one optimizer step", default=1)
    global_batch_size: int | None = _help(
        "samples of one optimizer step over all devices, whatever their number; gradient_accumulation follows from it",
        default=None,
    )
    epochs: float = _help("passes over the data, where max_steps is null", default=1.0)
    max_steps: int | None = _help("optimizer steps, instead of epochs", default=None)
    optimizer: Literal["adamw", "muon"] = _help(
        "muon: hidden matrices orthogonalized, for models trained from scratch", default="adamw"
    )
    schedule: Literal["cosine", "linear", "constant"] = _help("of the learning rate after warm-up", default="cosine")
    warmup_ratio: float = _help("share of the steps in which the learning rate rises", default=0.03)
    weight_decay: float = _help("for matrices; norms and biases have none", default=0.0)
    betas: tuple[float, float] = _help("AdamW's", default=(0.9, 0.999))
    max_grad_norm: float = _help("clip gradients to this norm; 0: never", default=1.0)
    precision: Literal["fp32", "bf16"] = _help("of the arithmetic; weights are fp32", default="fp32")
    deepspeed: Literal["zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"] | None = _help(
        "what the devices share out: 1 optimizer, 2 gradients too, 3 weights too; offload: they wait in CPU memory",
        default=None,
    )
    gradient_checkpointing: bool = _help("recompute activations to save memory", default=False)
    group_by_length: bool = _help("batches of samples of like length: less padding; packs have none", default=True)
    seed: int = _help("of initialization and order", default=0)
    log_steps: int = _help("steps between two lines of progress and metrics", default=10)
    save_steps: int = _help("steps between two checkpoints", default=500)
    save_total_limit: int = _help("how many checkpoints are kept", default=2)
    dataloader_workers: int = _help("processes that decode images; 0: the training process itself", default=0)
    spike_factor: float | None = _help(
        "stop at three steps in succession whose loss is above twice the median of the last 100, and this many times "
        "as far above it as their 90th percentile; null: only where it is not finite",
        default=5.0,
    )
    report: tuple[Literal["tensorboard", "wandb"], ...] = _help(
        "where metrics go besides metrics.jsonl: tensorboard, wandb (offline); both under the output", default=()
    )


@dataclass(frozen=True)
class ValidationSection:
    """What the model is tried on while it learns, and never learns from."""

    json: tuple[str, ...] = _help("JSON or JSON lines files of records; none: no validation", default=())
    image_root: str | None = _help("folder that image paths are relative to; null: data.image_root", default=None)
    steps: int = _help("optimizer steps between two validations; the last step has one too", default=500)
    samples: int | None = _help("records that the loss is measured on, drawn by the seed; null: all", default=500)
    answers: int = _help("of those, how many have their first question answered greedily", default=100)
    max_new_tokens: int = _help("tokens of an answer, at most", default=64)
    best: Literal["loss", "exact_match"] = _help(
        "what makes a model the best one, which is kept in best/", default="loss"
    )


@dataclass(frozen=True)
class AssumeSection:
    """What ``--dry-run`` takes for granted while there is no start folder or no data; a training never reads it."""

    preset: str = _help("a model of `mobillama-v models list`", default="mobillama-0.8b")
    samples: int = _help("records", default=100_000)
    tokens: int = _help("of a sample on average, images included", default=1024)
    longest: int = _help("tokens of the longest", default=2048)
    supervised: int = _help("tokens of a sample that are learned, on average", default=256)

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "longest", "supervised"):
            require(getattr(self, name) >= 1, f"assume.{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Recipe:
    """One training."""

    name: str = _help("what it is called")
    model: ModelSection = field(default_factory=ModelSection, metadata={"help": "what it starts from"})
    data: DataSection = field(default_factory=DataSection, metadata={"help": "what is learned from"})
    train: TrainSection = field(default_factory=TrainSection, metadata={"help": "how it is learned"})
    validation: ValidationSection = field(default_factory=ValidationSection, metadata={"help": "what it is tried on"})
    assume: AssumeSection | None = field(
        default=None, metadata={"help": "for --dry-run before start folder and data are there; {}: as below"}
    )
    output: str = _help("folder for checkpoints, metrics and final/", default="")

    def __post_init__(self) -> None:
        train = self.train
        for name in ("batch_size", "gradient_accumulation", "log_steps", "save_steps", "save_total_limit"):
            require(getattr(train, name) >= 1, f"train.{name} must be at least 1, not {getattr(train, name)}.")
        require(train.epochs > 0, f"train.epochs must be above 0, not {train.epochs}.")
        require(
            train.max_steps is None or train.max_steps >= 1,
            f"train.max_steps must be at least 1 or null, not {train.max_steps}.",
        )
        require(
            train.global_batch_size is None or train.gradient_accumulation == 1,
            "train.global_batch_size and train.gradient_accumulation exclude each other; set one of them.",
        )
        require(
            train.pack_tokens is None or (train.pack_tokens >= 2 and train.global_batch_size is None),
            "train.pack_tokens must be at least 2 and leaves open how many samples a step has; set "
            "train.global_batch_size=null and train.gradient_accumulation.",
        )
        require(0 <= train.warmup_ratio < 1, f"train.warmup_ratio must be from 0 to 1, not {train.warmup_ratio}.")
        for name in ("weight_decay", "max_grad_norm", "dataloader_workers"):
            require(getattr(train, name) >= 0, f"train.{name} must not be negative, and is {getattr(train, name)}.")
        require(all(0 <= beta < 1 for beta in train.betas), f"train.betas must be from 0 to 1, not {train.betas}.")
        for name, lr in train.modules.learning().items():
            require(lr > 0, f"train.modules.{name} must be a learning rate above 0 or null, not {lr}.")
        require(
            train.modules.embeddings is None or (train.modules.embeddings > 0 and train.modules.decoder is not None),
            "train.modules.embeddings needs a rate above 0 and a decoder that learns; set train.modules.decoder too.",
        )
        require(
            train.optimizer != "muon" or train.deepspeed is None,
            "train.optimizer muon needs whole matrices and train.deepspeed splits them; set train.optimizer=adamw.",
        )
        if train.lora is not None:
            _check_lora(train.lora, train)
        require(bool(train.modules.learning()), "train.modules gives no part a learning rate; nothing would learn.")
        require(
            self.data.features is None or train.modules.tower is None,
            "data.features needs a frozen tower; set train.modules.tower=null or data.features=null.",
        )
        require(all(file.repeat >= 1 for file in self.data.json), "data.json: repeat must be at least 1.")
        paths = [file.path for file in self.data.json]
        require(len(set(paths)) == len(paths), "data.json names a file twice; give it once, with repeat.")
        require(
            self.data.template in TEMPLATES,
            f"data.template must be one of {', '.join(TEMPLATES)}, not {self.data.template!r}.",
        )
        length = self.data.max_length
        require(length is None or length >= 2, "data.max_length must be at least 2 or null.")
        require(
            train.spike_factor is None or train.spike_factor > 0,
            f"train.spike_factor must be above 0 or null, not {train.spike_factor}.",
        )
        self._check_validation()

    def _check_validation(self) -> None:
        validation = self.validation
        for name, least in (("steps", 1), ("samples", 1), ("answers", 0), ("max_new_tokens", 1)):
            value = getattr(validation, name)
            require(value is None or value >= least, f"validation.{name} must be at least {least}, not {value}.")
        require(len(set(validation.json)) == len(validation.json), "validation.json names a file twice; give it once.")
        require(
            validation.best != "exact_match" or validation.answers > 0,
            "validation.best exact_match needs answers; set validation.answers above 0.",
        )

    def accumulation(self, devices: int) -> int:
        """Forward passes of one optimizer step.

        Raises:
            RecipeError: the global batch is no multiple of what the devices do at once.
        """
        train = self.train
        if train.global_batch_size is None:
            return train.gradient_accumulation
        at_once = train.batch_size * devices
        require(
            train.global_batch_size % at_once == 0,
            f"train.global_batch_size {train.global_batch_size} is no multiple of train.batch_size {train.batch_size} "
            f"x {devices} devices; change train.batch_size.",
        )
        return train.global_batch_size // at_once

    def require_paths(self) -> None:
        """Refuse a recipe that leaves open what only its user can know.

        Raises:
            RecipeError: no start folder, data or output.
        """
        for name, value in (("model.start", self.model.start), ("data.json", self.data.json), ("output", self.output)):
            require(bool(value), f"recipe {self.name} leaves {name} open; give it as {name}=… on the command line.")


def _check_lora(lora: LoraSection, train: TrainSection) -> None:
    require(
        train.modules.decoder is not None and train.modules.embeddings is None,
        "train.lora needs train.modules.decoder, the rate of its adapters, and train.modules.embeddings=null.",
    )
    require(train.optimizer == "adamw", "train.lora needs train.optimizer=adamw; muon is for whole matrices.")
    require(lora.rank >= 1 and lora.alpha > 0, "train.lora: rank must be at least 1 and alpha above 0.")
    require(0 <= lora.dropout < 1, f"train.lora.dropout must be from 0 to 1, not {lora.dropout}.")
    unknown = [target for target in lora.targets if target not in LORA_TARGETS]
    require(
        bool(lora.targets) and not unknown,
        f"train.lora.targets must be some of {', '.join(LORA_TARGETS)}, not {', '.join(unknown) or 'none'}.",
    )


def require(condition: bool, message: str) -> None:
    """Refuse a recipe for what ``message`` says, unless ``condition`` holds.

    Raises:
        RecipeError: it does not.
    """
    if not condition:
        raise RecipeError(message)
