"""Typed training recipes: their keys, and what of their values goes together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.errors import RecipeError


def _help(text: str, *, least: float | None = None, above: float | None = None, **options: Any) -> Any:
    """A key with its help, and the smallest value that it may have (``least``), or a bound that is none (``above``)."""
    return field(metadata={"help": text, "least": least, "above": above}, **options)


def _check_bounds(section: Any, name: str) -> None:
    for item in fields(section):
        value, least, above = getattr(section, item.name), item.metadata.get("least"), item.metadata.get("above")
        if value is not None and least is not None:
            require(value >= least, f"{name}.{item.name} must be at least {least:g}, not {value}.")
        if value is not None and above is not None:
            require(value > above, f"{name}.{item.name} must be above {above:g}, not {value}.")


@dataclass(frozen=True)
class DataFile:
    """One file of records in a mix."""

    path: str = _help("JSON or JSON lines file of records")
    repeat: int = _help("how many times each of its records is seen in an epoch", default=1, least=1)


@dataclass(frozen=True)
class ModelSection:
    """What training starts from."""

    start: str = _help(
        "a model by its name (nano), a folder or a Hugging Face id; a folder without weights is trained from scratch",
        default="",
    )


@dataclass(frozen=True)
class DataSection:
    """What is learned from, and how it is turned into tokens."""

    json: tuple[DataFile, ...] = _help("files of records, mixed and shuffled by the seed", default=())
    image_root: str = _help("folder that image paths are relative to", default=".")
    template: str = _help("conversation template: plain is image and caption, v1 a chat", default="v1")
    image_mode: Literal["pad", "crop", "squash"] | None = _help(
        "how images are made square, also written into the model's config; null: as that config has it", default=None
    )
    max_length: int | None = _help(
        "tokens of a sample, images included; null: the model's context", default=None, least=2
    )
    features: str | None = _help(
        "folder where the frozen tower's outputs are stored, and new images' added; null: the tower runs at each step",
        default=None,
    )
    skip_bad: bool = _help("train without records that cannot be learned from, instead of refusing them", default=False)
    duplicates: Literal["refuse", "keep"] = _help(
        "whether exact duplicates of a record count as bad; keep learns from them as often as they come",
        default="refuse",
    )
    empty_answers: Literal["refuse", "skip"] = _help(
        "records with an empty answer: stop before training, or leave them out and count them", default="refuse"
    )
    check_images: Literal["decode", "exists"] = _help(
        "before the first step: decode every image, or only look whether its file exists", default="decode"
    )


@dataclass(frozen=True)
class ModulesSection:
    """Peak learning rate of each part that learns; null freezes it."""

    projector: float | None = _help("between tower and decoder", default=None, above=0)
    decoder: float | None = _help("the language model and its head", default=None, above=0)
    embeddings: float | None = _help(
        "token embeddings and head, where they differ from the decoder", default=None, above=0
    )
    tower: float | None = _help("the image tower", default=None, above=0)

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

    rank: int = _help("width of an adapter", default=128, least=1)
    alpha: float = _help("an adapter's product is scaled by alpha / rank", default=256.0, above=0)
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
    batch_size: int = _help("samples of one forward pass on one device", default=32, least=1)
    pack_tokens: int | None = _help(
        "instead of batch_size, as many samples in a forward pass as these tokens hold, without padding; none attends "
        "to another",
        default=None,
        least=2,
    )
    gradient_accumulation: int = _help("forward passes of one optimizer step", default=1, least=1)
    global_batch_size: int | None = _help(
        "samples of one optimizer step over all devices, whatever their number; gradient_accumulation follows from it",
        default=None,
    )
    epochs: float = _help("passes over the data, where max_steps is null", default=1.0, above=0)
    max_steps: int | None = _help("optimizer steps, instead of epochs", default=None, least=1)
    optimizer: Literal["adamw", "muon"] = _help(
        "muon: hidden matrices orthogonalized, for models trained from scratch", default="adamw"
    )
    schedule: Literal["cosine", "linear", "constant"] = _help("of the learning rate after warm-up", default="cosine")
    warmup_ratio: float = _help("share of the steps in which the learning rate rises", default=0.03, least=0)
    weight_decay: float = _help("for matrices; norms and biases have none", default=0.0, least=0)
    betas: tuple[float, float] = _help("AdamW's", default=(0.9, 0.999))
    max_grad_norm: float = _help("clip gradients to this norm; 0: never", default=1.0, least=0)
    precision: Literal["fp32", "bf16", "auto"] = _help(
        "of the arithmetic, weights are fp32; auto: bf16 on a GPU, fp32 on a CPU", default="fp32"
    )
    deepspeed: Literal["zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"] | None = _help(
        "what the devices share out: 1 optimizer, 2 gradients too, 3 weights too; offload: they wait in CPU memory",
        default=None,
    )
    gradient_checkpointing: bool = _help("recompute activations to save memory", default=False)
    group_by_length: bool = _help("batches of samples of like length: less padding; packs have none", default=True)
    seed: int = _help("of initialization and order", default=0, least=0)
    log_steps: int = _help("steps between two lines of progress and metrics", default=10, least=1)
    save_steps: int = _help("steps between two checkpoints", default=500, least=1)
    save_total_limit: int = _help("how many checkpoints are kept", default=2, least=1)
    dataloader_workers: int = _help("processes that decode images; 0: the training process itself", default=0, least=0)
    spike_factor: float | None = _help(
        "stop at three steps in succession whose loss is above twice the median of the last 100, and this many times "
        "as far above it as their 90th percentile; null: only where it is not finite",
        default=5.0,
        above=0,
    )
    report: tuple[Literal["tensorboard", "wandb"], ...] = _help(
        "where metrics go besides metrics.jsonl: tensorboard, wandb (offline); both under the output", default=()
    )


@dataclass(frozen=True)
class ValidationSection:
    """Held-out records: the model is measured on them while it trains, and never learns from them."""

    json: tuple[str, ...] = _help("JSON or JSON lines files of records; none: no validation", default=())
    image_root: str | None = _help("folder that image paths are relative to; null: data.image_root", default=None)
    steps: int = _help("optimizer steps between two validations; the last step has one too", default=500, least=1)
    samples: int | None = _help(
        "records that the loss is measured on, drawn by the seed; null: all", default=500, least=1
    )
    answers: int = _help("of those, how many have their first question answered greedily", default=100, least=0)
    max_new_tokens: int = _help("tokens of an answer, at most", default=64, least=1)
    best: Literal["loss", "exact_match"] = _help("measure of the best model, which is saved in best/", default="loss")


@dataclass(frozen=True)
class AssumeSection:
    """What ``--dry-run`` takes for granted while there is no start folder or no data; a training never reads it."""

    preset: str = _help("a model of `mobillama-v models list`", default="mobillama-0.8b")
    samples: int = _help("records", default=100_000, least=1)
    tokens: int = _help("of a sample on average, images included", default=1024, least=1)
    longest: int = _help("tokens of the longest", default=2048, least=1)
    supervised: int = _help("tokens of a sample that are learned, on average", default=256, least=1)


@dataclass(frozen=True)
class Recipe:
    """One training."""

    name: str = _help("what it is called")
    model: ModelSection = field(default_factory=ModelSection, metadata={"help": "what it starts from"})
    data: DataSection = field(default_factory=DataSection, metadata={"help": "what is learned from"})
    train: TrainSection = field(default_factory=TrainSection, metadata={"help": "how it is learned"})
    validation: ValidationSection = field(default_factory=ValidationSection, metadata={"help": "held-out records"})
    assume: AssumeSection | None = field(
        default=None, metadata={"help": "for --dry-run before start folder and data are there; {}: as below"}
    )
    output: str = _help("folder for checkpoints, metrics and final/", default="")

    def __post_init__(self) -> None:
        train, data, validation = self.train, self.data, self.validation
        sections = {"data": data, "train": train, "train.modules": train.modules, "validation": validation}
        optional = {"train.lora": train.lora, "assume": self.assume}
        for name, section in (sections | {name: each for name, each in optional.items() if each is not None}).items():
            _check_bounds(section, name)
        for file in data.json:
            _check_bounds(file, "data.json")
        require(
            train.global_batch_size is None or train.gradient_accumulation == 1,
            "train.global_batch_size and train.gradient_accumulation exclude each other; set one of them.",
        )
        require(
            train.pack_tokens is None or train.global_batch_size is None,
            "train.pack_tokens leaves open how many samples a step has; set train.global_batch_size=null and "
            "train.gradient_accumulation.",
        )
        require(train.warmup_ratio < 1, f"train.warmup_ratio must be from 0 to 1, not {train.warmup_ratio}.")
        require(all(0 <= beta < 1 for beta in train.betas), f"train.betas must be from 0 to 1, not {train.betas}.")
        require(
            train.modules.embeddings is None or train.modules.decoder is not None,
            "train.modules.embeddings needs a decoder that learns; set train.modules.decoder too.",
        )
        require(
            train.optimizer != "muon" or train.deepspeed is None,
            "train.optimizer muon needs whole matrices and train.deepspeed splits them; set train.optimizer=adamw.",
        )
        if train.lora is not None:
            _check_lora(train.lora, train)
        require(bool(train.modules.learning()), "train.modules gives no part a learning rate; nothing would learn.")
        require(
            data.features is None or train.modules.tower is None,
            "data.features needs a frozen tower; set train.modules.tower=null or data.features=null.",
        )
        require(
            data.template in TEMPLATES,
            f"data.template must be one of {', '.join(TEMPLATES)}, not {data.template!r}.",
        )
        for name, paths in (("data", [file.path for file in data.json]), ("validation", list(validation.json))):
            require(len(set(paths)) == len(paths), f"{name}.json names a file twice; give it once.")
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
    require(0 <= lora.dropout < 1, f"train.lora.dropout must be from 0 to 1, not {lora.dropout}.")
    unknown = [target for target in lora.targets if target not in LORA_TARGETS]
    require(
        bool(lora.targets) and not unknown,
        f"train.lora.targets must be some of {', '.join(LORA_TARGETS)}, not {', '.join(unknown) or 'none'}.",
    )


def require(condition: bool, message: str) -> None:
    """Refuse a recipe with ``message`` unless ``condition`` holds.

    Raises:
        RecipeError: it does not.
    """
    if not condition:
        raise RecipeError(message)
