"""A whole model of another program as a model folder: read shard by shard, verified tensor by tensor, no code run.

An importer plans from names and shapes alone. Of the numbers, those of one new file at a time are in memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobillama_v.checkpoint import refuse_misfits, weight_files
from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.hf.folder import describe_folder
from mobillama_v.hub import find_checkpoint
from mobillama_v.interop.formats import FFN, ModelPlan, Piece, Sources, model_importer
from mobillama_v.interop.tensor_files import TensorFiles
from mobillama_v.output import refuse_existing, written_whole
from mobillama_v.tokenization import TextTokenizer

SHARD = 1 << 29
"""Bytes of a weight file, beyond which the next tensor goes to another."""
_FFN = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ImportedModel:
    """What was written: the configuration, how many tensors, and notes, a sentence each."""

    spec: ModelConfig
    tensors: int
    notes: tuple[str, ...]


def import_model(
    source: str,
    out: Path,
    *,
    base: str | None = None,
    tower: str | None = None,
    ffn: FFN = "auto",
    tokenizer: Path | None = None,
) -> ImportedModel:
    """Write the model ``source``, of any format in :data:`~mobillama_v.interop.formats.MODEL_IMPORTERS`, to ``out``.

    Args:
        source: a folder, or a Hugging Face id.
        out: must not be there yet.
        base: folder or id of the language model that an adapter or projector belongs to.
        tower: folder or id of the image tower, where the checkpoint does not hold it.
        ffn: ``auto`` holds feed-forward networks once where they are equal in all layers; ``per-layer`` never does.
        tokenizer: a ``tokenizer.json``; None means the checkpoint's, or else the base's.

    Raises:
        MobiLlamaVError: what is named is not there, is damaged, or cannot be imported; named.
    """
    refuse_existing(out, parents=True)
    folder = find_checkpoint(source)
    importer, config = model_importer(folder)
    apart = [None if each is None else find_checkpoint(each) for each in (base, tower)]
    vocabulary = tokenizer or folder / "tokenizer.json"
    if tokenizer is None and apart[0] is not None and not vocabulary.is_file():
        vocabulary = apart[0] / "tokenizer.json"
    sources = Sources(folder, vocabulary, *apart)
    files = importer.files(sources)
    plan = importer.plan(sources, config, files.shapes)
    plan = _shared(plan, files) if ffn != "per-layer" else plan
    _check(plan, files, folder)
    if not vocabulary.is_file():
        raise CheckpointError(f"{source} comes without a tokenizer.json; give one with --tokenizer.")
    TextTokenizer.of_decoder(vocabulary, plan.spec.decoder)
    with written_whole(out, parents=True) as made:
        made.mkdir()
        _write(made, plan, files)
        _write_tokenizer(vocabulary, made / "tokenizer.json", plan.added_tokens)
        describe_folder(made)
        _verify(made, plan, files)
    return ImportedModel(plan.spec, len(plan.pieces), plan.notes)


def _write_tokenizer(source: Path, path: Path, added: tuple[str, ...]) -> None:
    path.write_bytes(source.read_bytes())
    if added:
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.add_special_tokens([AddedToken(each, special=True) for each in added])
        tokenizer.save(str(path))


def _shared(plan: ModelPlan, files: TensorFiles) -> ModelPlan:
    """The plan with one feed-forward network, where all layers hold the same one."""
    import torch

    name = "language_model.layers.{}.mlp.{}.weight"
    layers = plan.spec.decoder.num_hidden_layers
    if layers == 1 or plan.spec.decoder.ffn_sharing == "all":
        return plan
    for part in _FFN:
        first = files.read(plan.pieces[name.format(0, part)])
        for i in range(1, layers):
            if not torch.equal(first, files.read(plan.pieces[name.format(i, part)])):
                return plan
    pieces = {ours: piece for ours, piece in plan.pieces.items() if ".mlp." not in ours or "visual" in ours}
    pieces |= {f"language_model.feed_forward.{part}.weight": plan.pieces[name.format(0, part)] for part in _FFN}
    left = {source for ours, piece in plan.pieces.items() if ours not in pieces for source in piece.names}
    spec = replace(plan.spec, decoder=replace(plan.spec.decoder, ffn_sharing="all"))
    notes = (*plan.notes, "the feed-forward networks of all layers are equal, and are held once")
    return replace(plan, spec=spec, pieces=pieces, unused=plan.unused | left, notes=notes)


def _check(plan: ModelPlan, files: TensorFiles, folder: Path) -> None:
    """See that every tensor of theirs is used or left out by name, and every one of ours is there in its shape."""
    import torch

    from mobillama_v.model.vlm import VisionLanguageModel

    taken = {name for piece in plan.pieces.values() for name in piece.names}
    refuse_misfits(
        folder,
        missing=sorted(taken - files.shapes.keys()),
        extra=sorted(files.shapes.keys() - taken - plan.unused),
        wrong=[],
    )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in VisionLanguageModel(plan.spec).state_dict().items()}
    wrong = []
    for name, piece in plan.pieces.items():
        shapes = [files.shapes[each] for each in piece.sources]
        found = shapes[0] if len(shapes) == 1 else (sum(each[0] for each in shapes), *shapes[0][1:])
        if piece.view is not None and math.prod(piece.view) == math.prod(found):
            found = piece.view
        if name in expected and found != expected[name]:
            wrong.append(f"{name} is {list(found)} and must be {list(expected[name])}")
    refuse_misfits(
        folder,
        missing=[name for name in expected if name not in plan.pieces],
        extra=[name for name in plan.pieces if name not in expected],
        wrong=wrong,
    )


def _write(folder: Path, plan: ModelPlan, files: TensorFiles) -> None:
    from safetensors.torch import save_file

    from mobillama_v.hf.configuration import MobiLlamaVConfig

    shards: list[dict[str, Piece]] = [{}]
    size = 0
    for name, piece in plan.pieces.items():
        numbers = 4 * sum(math.prod(files.shapes[each]) for each in piece.sources)
        if size and size + numbers > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = piece
        size += numbers
    weight_map: dict[str, str] = {}
    total, dtype = 0, "float32"
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {name: files.read(piece).contiguous() for name, piece in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config: dict[str, Any] = MobiLlamaVConfig.from_spec(plan.spec).to_dict() | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify(folder: Path, plan: ModelPlan, files: TensorFiles) -> None:
    """Read back what was written, and compare every number with its source.

    Raises:
        CheckpointError: one differs.
    """
    import torch

    written = TensorFiles()
    written.add(weight_files(folder))
    same = {name for name in written.shapes if torch.equal(written.get(name), files.read(plan.pieces[name]))}
    if differing := sorted(plan.pieces.keys() - same):
        raise CheckpointError(f"{folder} does not hold what was written to it ({differing[:3]}); check the disk.")
