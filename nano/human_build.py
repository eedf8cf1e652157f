"""From a model that knows drawings to one that describes photographs: data, start, and the stages of training.

Every step leaves its result in the output folder and is skipped where that is there, so a killed run goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.hub import find_model
from nano import build, caption_qa, small_talk, stemcache, vocabulary
from nano.human_data import Asked, Captioned, read_captions, read_questions
from nano.human_train import Stage
from nano.phrases import DESCRIBE_PROMPTS
from nano.stemcache import StemCache

if TYPE_CHECKING:
    from nano.human_train import Learner
    from nano.mixture import Mixture

NEW_TOKENS = 2048
_HEAD_EPOCHS = 5
FIRST_SHARE = 0.4
"""Of the first stage's model in the averaged one."""
_EVERYTHING = {"captions": 0.48, "rooms": 0.13, "classes": 0.12, "drawings": 0.13, "reading": 0.09, "easy-vqa": 0.02}
_EVERYTHING |= {"text": 0.03}
_COPYING = {"captions": 0.33, "rooms": 0.06, "classes": 0.22, "drawings": 0.09, "reading": 0.25, "easy-vqa": 0.01}
_COPYING |= {"text": 0.04}
_SETTLED = {"captions": 0.43, "rooms": 0.11, "classes": 0.13, "drawings": 0.11, "reading": 0.16, "easy-vqa": 0.02}
_SETTLED |= {"text": 0.04}
_AGREEING = {"captions": 0.45, "own": 0.14, "rooms": 0.10, "classes": 0.11, "drawings": 0.09, "reading": 0.08}
_AGREEING |= {"easy-vqa": 0.01, "text": 0.02}
STAGES = (
    Stage("learn", 2400, 1.5e-3, _EVERYTHING),
    Stage("copy", 1200, 1.3e-3, _COPYING),
    Stage("settle", 1300, 1.2e-3, _SETTLED, decay=True),
    Stage("agree", 720, 9e-4, _AGREEING, decay=True),
)
"""To copy names of classes and words that a library has read is not learnt beside everything else: it takes a time of
its own."""


@dataclass(frozen=True)
class Sizes:
    """How much is made and learnt; the defaults are for one run of about four hours on two cores."""

    scenes: int = 9_000
    signs: int = 2_500
    batch: int = 16
    photos: int | None = None
    stages: tuple[Stage, ...] = STAGES
    head_batches: int = 560
    """Of 16 samples, from which the head learns again at the end."""


def learn_photographs(
    start: str, flickr8k: Path, daquar: Path, photo_folder: Path, out: Path, *, sizes: Sizes, seed: int, processes: int
) -> Path:
    """Run every step.

    Args:
        start: name or folder of a model of nano's kind that knows drawings.
        flickr8k: photographs with captions, see :mod:`nano.human_data`.
        daquar: photographs with questions, see there.
        photo_folder: photographs of ImageNet classes; no labels are needed.
        out: folder for everything that is made.
        sizes: amounts; for a trial smaller than the defaults.
        seed: of all pictures, questions and samples.
        processes: that train side by side, each with ``sizes.batch`` samples a step.

    Returns:
        The folder of the trained model.

    Raises:
        MobiLlamaVError: data that is not there or has another form, or a missing extra.
    """
    data = out / "data"
    drawn = build.Sizes(scenes=sizes.scenes, signs=sizes.signs, questions=11)
    build.draw_pictures(data, drawn, seed=seed, workers=processes)
    crops = build.cut_photos(photo_folder, data, build.Sizes(photos=sizes.photos), seed=seed)
    captioned, asked = _human(flickr8k, daquar)
    _cache_stems(out, data, flickr8k, daquar, crops, captioned, asked, sizes)
    folder = _write_start(start, captioned, asked, out, seed)
    for stage in sizes.stages:
        _train(stage, folder, out, flickr8k, daquar, sizes, seed, processes)
        folder = out / stage.name / "final"
    averaged = average(out / sizes.stages[0].name / "final", folder, out / "averaged")
    return _refit_head(averaged, out, flickr8k, daquar, sizes.head_batches, seed)


def average(first: Path, last: Path, out: Path) -> Path:
    """The mean of two models of one training, which describes new photographs better than the last one
    (Wortsman et al., arXiv 2109.01903): that one knows the captions of the training photographs by heart.

    Args:
        first: folder of the model that has learnt less.
        last: folder of the one that went on from it.
        out: folder to make.

    Returns:
        ``out``.
    """
    if out.exists():
        return out
    from safetensors.torch import load_file, save_file

    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(last, partial)
    one, other = (load_file(folder / "model.safetensors") for folder in (first, last))
    mean = {name: tensor.lerp(one[name], FIRST_SHARE) for name, tensor in other.items()}  # what never changed stays
    save_file(mean, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(out)
    return out


def _refit_head(averaged: Path, out: Path, flickr8k: Path, daquar: Path, batches: int, seed: int) -> Path:
    """The model whose head has learnt again (:mod:`nano.head`)."""
    folder = out / "refitted"
    if folder.exists():
        return folder
    import torch

    from nano import head

    learner, mixture, stems = _learning(averaged, out, flickr8k, daquar)
    seen = head.states(learner, mixture, stems, batches=batches, seed=seed)
    weight = learner.model.lm_head.weight
    learnt = head.refit(weight, seen, epochs=_HEAD_EPOCHS, seed=seed)
    with torch.no_grad():
        weight.copy_(learnt)
    learner.save(folder)
    return folder


def _learning(folder: Path, out: Path, flickr8k: Path, daquar: Path) -> tuple[Learner, Mixture, dict[str, StemCache]]:
    """A model in training and what it learns from."""
    from nano.human_train import Learner
    from nano.mixture import Mixture

    captioned, asked = _human(flickr8k, daquar)
    stems = {path.name: StemCache(path) for path in (out / "stem").iterdir()}
    learner = Learner(folder, out / "start" / "tokenizer.json")
    return learner, Mixture(learner.encoder, stems, captioned, asked, out / "data"), stems


def _human(flickr8k: Path, daquar: Path) -> tuple[list[Captioned], list[Asked]]:
    return [each for each in read_captions(flickr8k) if each.split != "dev"], read_questions(daquar)[0]


def _drawing_names(data: Path, sizes: Sizes) -> list[str]:
    easy = [record["image"] for record in json.loads((data / "easyvqa-train.json").read_text(encoding="utf-8"))]
    names = build.scene_names(build.SCENES, sizes.scenes) + build.scene_names(build.SIGNS, sizes.signs)
    return [*names, *dict.fromkeys(easy)]


def _cache_stems(
    out: Path,
    data: Path,
    flickr8k: Path,
    daquar: Path,
    crops: list[str],
    captioned: list[Captioned],
    asked: list[Asked],
    sizes: Sizes,
) -> None:
    from nano.stem import load_stem

    stem, image = load_stem(), build.spec().image
    flickr = [each.image for each in captioned]
    rooms = list(dict.fromkeys(each.image for each in asked))
    wanted = {
        "flickr8k": (flickr8k / "images", flickr, False),
        "flickr8k-mirrored": (flickr8k / "images", flickr, True),
        "daquar": (daquar / "images", rooms, False),
        "crops": (data, crops, False),
        "drawings": (data, _drawing_names(data, sizes), False),
    }
    for name, (root, names, mirrored) in wanted.items():
        stemcache.compute(stem, image, root, names, out / "stem" / name, mirrored=mirrored)


def texts(captioned: list[Captioned], asked: list[Asked]) -> Iterator[str]:
    """Everything human, as it stands in prompts, for a tokenizer to learn from."""
    for photo in captioned:
        yield from (f" {text}" for text in photo.captions)
    for each in asked:
        yield f"\n{each.question} {each.answer}"
    yield from (f" {text}" for text in (*small_talk.all_texts(), *DESCRIBE_PROMPTS, caption_qa.CANNOT_TELL))


def _write_start(start: str, captioned: list[Captioned], asked: list[Asked], out: Path, seed: int) -> Path:
    """The model to start from, with more words: a new token's vectors are the mean of its parts'. Its tower finds the
    words of captions."""
    folder = out / "start"
    if folder.exists():
        return folder
    import torch
    from torch import nn

    from mobillama_v import MobiLlamaVForConditionalGeneration
    from mobillama_v.tokenization import TextTokenizer
    from nano import photo_words, tower

    source, partial = find_model(start), out / "start.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    added = vocabulary.extend_tokenizer(
        source / "tokenizer.json", texts(captioned, asked), partial / "tokenizer.json", count=NEW_TOKENS
    )
    model = MobiLlamaVForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    rows, width = model.lm_head.weight.shape
    for layer in (model.language_model.embed_tokens, model.lm_head):
        weight = torch.cat((layer.weight.detach(), torch.zeros(len(added), width)))
        for token, first, second in added:
            weight[token] = (weight[first] + weight[second]) / 2
        layer.weight = nn.Parameter(weight)
    model.config.text_config.vocab_size = rows + len(added)
    trunk = model.vision_tower.visual.trunk
    caches = [StemCache(out / "stem" / name) for name in ("flickr8k", "flickr8k-mirrored")]
    found = photo_words.learn(trunk, caches, captioned, seed)
    tokenizer = TextTokenizer.from_file(partial / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    tower.start_words(trunk.account.words, tower.Words(model.language_model.embed_tokens.weight, tokenizer), found)
    model.save_pretrained(partial)
    partial.rename(folder)
    return folder


def _train(
    stage: Stage, start: Path, out: Path, flickr8k: Path, daquar: Path, sizes: Sizes, seed: int, processes: int
) -> None:
    if (out / stage.name / "final").exists():
        return
    import torch.multiprocessing as mp

    meeting = out / f"{stage.name}.meeting"
    meeting.unlink(missing_ok=True)
    args = (stage, start, out, flickr8k, daquar, sizes.batch, seed, processes, meeting)
    if processes == 1:
        _work(0, *args)
    else:
        mp.spawn(_work, args, nprocs=processes)
    meeting.unlink(missing_ok=True)


def _work(
    rank: int,
    stage: Stage,
    start: Path,
    out: Path,
    flickr8k: Path,
    daquar: Path,
    batch: int,
    seed: int,
    processes: int,
    meeting: Path,
) -> None:
    import torch
    import torch.distributed as dist

    from nano import own_words
    from nano.human_train import Trainer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: a process a core does more than one process over all cores
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=processes)
    learner, mixture, stems = _learning(start, out, flickr8k, daquar)
    if "own" in stage.mix:
        mixture.own = own_words.of_photographs(learner, stems, _human(flickr8k, daquar)[0])
    trainer = Trainer(learner, mixture, stems, seed=seed, batch=batch, rank=rank, world=processes)
    trainer.run(stage, out / stage.name)
    if processes > 1:
        dist.destroy_process_group()
    torch.set_num_threads(threads)
