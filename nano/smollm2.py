"""A language model of other people gets nano's eyes: the two stages of LLaVA on two cores, with real weights.

A GGUF file (SmolLM2-135M-Instruct, say) is the decoder, nano's tower sees, and the projector between them is new. Stage
1 teaches the projector alone, from people's captions. Stage 2 teaches the projector and adapters in the decoder to
describe, to answer, and to go on talking without a picture. What is there already is not made again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from mobillama_v.config import ProjectorConfig
from mobillama_v.errors import DataError
from mobillama_v.hub import find_model
from nano import caption_qa, small_talk
from nano.build import train_stage, write_json
from nano.human_data import Captioned, read_captions
from nano.phrases import DESCRIBE_PROMPTS

_ALIGN = ("data.template=chatml", "data.duplicates=keep", "train.modules.projector=1e-3", "train.batch_size=16")
_INSTRUCT = (
    *("data.template=chatml", "data.duplicates=keep", "data.max_length=384"),
    *("train.modules.projector=1e-4", "train.modules.decoder=2e-4", "train.lora.rank=32", "train.lora.alpha=64"),
    *("train.batch_size=8", "train.global_batch_size=16", "train.gradient_checkpointing=false"),
    "train.dataloader_workers=0",
)
_TEXT_SHARE = 0.1
_OTHER = "a small assistant"


@dataclass(frozen=True)
class Steps:
    """How long each stage is."""

    align: int = 500
    instruct: int = 500


def learn(decoder: Path, flickr8k: Path, out: Path, *, steps: Steps, seed: int) -> Path:
    """Make the model.

    Args:
        decoder: a ``.gguf`` file whose chats are ChatML.
        flickr8k: photographs with captions, see :mod:`nano.human_data`.
        out: folder for everything that is made; a killed run goes on there.
        steps: of both stages, each of 16 samples.
        seed: of records, new weights and order.

    Returns:
        The folder of the trained model.

    Raises:
        MobiLlamaVError: what is named is not there or has another form, or a missing extra.
    """
    captioned = [each for each in read_captions(flickr8k) if each.split == "train"]
    if not captioned:
        raise DataError(f"{flickr8k} has no photographs of the split 'train'.")
    start = out / "start"
    if not start.exists():
        from mobillama_v.interop.init_checkpoint import write_initial_model

        projector = ProjectorConfig("mlp2x_gelu")
        write_initial_model(
            start, decoder=str(decoder), tower=find_model("nano"), projector=projector, ffn="per-layer", seed=seed
        )
    rng = random.Random(f"smollm2:{seed}")
    records = {"align": _captions(captioned, rng), "instruct": _conversations(captioned, rng)}
    folder = start
    for stage, recipe, more, count in (
        ("align", "nano-align", _ALIGN, steps.align),
        ("instruct", "lora", _INSTRUCT, steps.instruct),
    ):
        path = out / f"{stage}.json"
        if not path.exists():
            write_json(path, records[stage])
        more = (*more, f"data.features={out / 'features'}", f"train.max_steps={count}")
        train_stage(recipe, folder, out / stage, [(path, 1)], flickr8k / "images", *more, seed=seed)
        folder = out / stage / "final"
    return folder


def _record(turns: list[tuple[str, str]], image: str | None = None) -> dict[str, object]:
    said = [
        {"from": speaker, "value": ("<image>\n" if image and not i and speaker == "human" else "") + text}
        for i, turn in enumerate(turns)
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"conversations": said} | ({"image": image} if image else {})


def _captions(captioned: list[Captioned], rng: random.Random) -> list[dict[str, object]]:
    """A record for each caption."""
    return [
        _record([(rng.choice(DESCRIBE_PROMPTS), caption)], each.image)
        for each in captioned
        for caption in each.captions
        if caption
    ]


def _conversations(captioned: list[Captioned], rng: random.Random) -> list[dict[str, object]]:
    """For each photograph a description and questions; for some, talk without a picture.

    Nano's refusals are left out: they are not true of a decoder that knows more than pictures.
    """
    facts = [caption_qa.read(each.captions) for each in captioned]
    asker = caption_qa.Asker(facts)
    records = []
    for each, known in zip(captioned, facts, strict=True):
        asked = [turn[1:] for turn in asker.turns(known, rng)]
        rng.shuffle(asked)
        described = (rng.choice(DESCRIBE_PROMPTS), rng.choice([text for text in each.captions if text]))
        records.append(_record([described, *asked[:3]], each.image))
        if rng.random() < _TEXT_SHARE:
            talk = [turn for turn in small_talk.small_talk(rng, turns=2) if turn[1] != small_talk.UNKNOWN]
            records += [_record([(q, a.replace("MobiLlama-V nano", _OTHER)) for q, a in talk])] if talk else []
    return records
