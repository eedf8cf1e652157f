"""``mobillama-v quantize``: a model folder packed for the CPU engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.config import ModelConfig
    from mobillama_v.model.vlm import VisionLanguageModel

_CHOICES = (4, 8)
_RECORDS = 256  # that are run for --calibrate
_VISION = ("vision_tower.", "projector.")


def quantize(
    model: Annotated[str, typer.Argument(help="An embedded model, a model folder, or a Hugging Face id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    bits: Annotated[int, typer.Option(help="Bits of the decoder's weights: 4 or 8.")] = 4,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Training records (JSON) for GPTQ calibration: the 4-bit weights are rounded to err least on them."
        ),
    ] = None,
    image_root: Annotated[Path, typer.Option(help="Folder that the records' image paths are relative to.")] = Path("."),
) -> None:
    """Make a smaller copy of a model, with 4-bit or 8-bit weights, for the CPU engine.

    The bits are those of the decoder. Large linear layers of the image tower and the projector get 8 bits. Use the new
    folder like any other: describe --model OUT.
    """
    from mobillama_v.hub import find_model, read_spec
    from mobillama_v.output import require_space, written_whole

    if bits not in _CHOICES:
        raise ConfigError(f"--bits is {bits} and must be 4 or 8.")
    if calibrate is not None and bits != 4:
        raise ConfigError(f"--calibrate is for 4 bits, and --bits is {bits}; leave one of them out.")
    folder = find_model(model)
    spec = read_spec(folder)
    require_space(out, spec.decoder.num_params() * bits // 8)
    with written_whole(out) as made:
        made.mkdir()
        before, after = _write(folder, spec, bits, made, calibrate, image_root)
    print(
        f"The decoder takes {after / 1e6:,.1f} MB at {bits} bits ({before / 1e6:,.1f} MB before). "
        f"Use it with: mobillama-v describe --model {out} photo.jpg"
    )


def _write(
    folder: Path, spec: ModelConfig, bits: int, made: Path, records: Path | None, image_root: Path
) -> tuple[int, int]:
    """Write the packed model to ``made``; bytes of the decoder before and after."""
    from safetensors.torch import save_file

    from mobillama_v.backends.native import packed_format, packed_vision
    from mobillama_v.backends.native.torch_convert import pack
    from mobillama_v.checkpoint import iterate_tensors, weight_files
    from mobillama_v.model.vlm import load_network

    if packed_format.is_packed(folder):
        raise CheckpointError(f"{str(folder)!r} is packed already; give the model that it was made from.")
    network = load_network(folder, spec)  # which checks all names and shapes
    moments = None if records is None else _moments(network, spec, folder, records, image_root)
    with Progress("matrices") as bar:
        packed = pack(network.language_model, network.lm_head, spec.decoder, bits, moments=moments, progress=bar)
    packed_format.write(packed, made)
    packed_vision.pack(network)
    kept = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(_VISION)}
    before = 0
    for path in weight_files(folder):
        for name, tensor in iterate_tensors(path):
            if name in kept:  # as it is in the file, not as torch computes with it
                kept[name] = tensor
            elif not name.startswith(_VISION):
                before += tensor.nbytes
    kept = {name: tensor.contiguous() for name, tensor in kept.items()}
    save_file(kept, made / "model.safetensors", metadata={"format": "pt"})
    for path in sorted(folder.glob("*.json")):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, made / path.name)
    return before, (made / packed_format.FILE).stat().st_size


def _moments(
    network: VisionLanguageModel, spec: ModelConfig, folder: Path, records: Path, image_root: Path
) -> dict[str, Tensor]:
    """Second moments of what the decoder's matrices are given by up to :data:`_RECORDS` records, evenly chosen."""
    import torch

    from mobillama_v.backends.native.calibration import gathered_moments
    from mobillama_v.model.vlm import place_image_features
    from mobillama_v.prompt import IGNORE_INDEX
    from mobillama_v.train.data.collate import Collator
    from mobillama_v.train.data.dataset import TrainingSet, load_samples
    from mobillama_v.train.data.encoding import Encoding
    from mobillama_v.train.data.preprocess import check_images
    from mobillama_v.train.recipe import DataFile

    encoding = Encoding.of(folder, spec, template=None, max_length=None, key="the context")
    samples, _ = load_samples(
        [DataFile(str(records))],
        encoding,
        images=lambda paths: check_images(paths, image_root, decode=False),
        keep_duplicates=True,
    )
    known = TrainingSet(samples, image_root=image_root, transform=spec.image)
    collate = Collator(spec.decoder.pad_token_id)
    decoder = network.language_model
    gathering = gathered_moments(decoder, network.lm_head, spec.decoder)
    with torch.inference_mode(), gathering as moments, Progress("records") as bar:
        count = min(len(known), _RECORDS)
        for number in range(count):
            batch = collate([known[number * len(known) // count]])
            embeds = decoder.embed_tokens(batch["input_ids"])
            if "pixel_values" in batch:
                features = network.get_image_features(batch["pixel_values"])
                embeds = place_image_features(embeds, batch["image_mask"], features)
            hidden = decoder(embeds, position_ids=torch.arange(embeds.shape[1])[None])
            network.lm_head(hidden[:, :-1][batch["labels"][:, 1:] != IGNORE_INDEX])  # where something is to be said
            bar("calibrating", number + 1, count)
    return moments
