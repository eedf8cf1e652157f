"""The embedded model from nothing to weights: pictures, tokenizer, language, tower, the two stages, export.

Every step leaves its result in the output folder and is skipped where that is there, so a killed run goes on.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mobillama_v.config import ModelConfig
from mobillama_v.images import find_images, load_image
from mobillama_v.presets import PRESETS
from mobillama_v.prompt import SYSTEM
from nano import classes, easyvqa, photos, vocabulary
from nano.build_scenes import (
    DEFAULT_STYLES,
    DENSE,
    TOKENS_ALONE,
    training_scene,
    write_dense_questions,
    write_questions,
    write_split,
)
from nano.captions import structured_words

SCENES, SIGNS, HELD_OUT, TEXT = "scenes", "signs", "held-out", "text"
_SIGN_STYLES = {"word": 0.6, "two_words": 0.4}  # pictures with words, from which the tower learns to read
_PHOTO_TALKS = 4  # text-only conversations about each class
_NAMINGS = 6  # conversations about each class over photographs of something else


def _further(rate: float, steps: int) -> tuple[str, ...]:
    """Options of a part of stage 2 that asks up to 15 questions a picture."""
    return (
        f"train.modules.decoder={rate}",
        f"train.max_steps={steps}",
        "train.pack_tokens=3648",
        "data.max_length=640",
    )


_CAPTIONS = {f"{SCENES}-captions": 1, "easyvqa-train-captions": 1, "photos-captions": 3}
_DENSE = {f"{SCENES}-dense": 1, f"{SIGNS}-dense": 1, "easyvqa-train": 1}
_RETRIEVAL = {f"{SCENES}-retrieval": 1, f"{SIGNS}-retrieval": 1}
_MIXED = _DENSE | _RETRIEVAL | {"photos": 3, "photos-names": 4}
_STAGES: tuple[tuple[str, str, dict[str, int], tuple[str, ...]], ...] = (
    ("align", "nano-align", _CAPTIONS, ()),
    ("caption", "nano-caption", _CAPTIONS, ("train.pack_tokens=2560", "train.modules.decoder=1.5e-3")),
    (
        "instruct",
        "nano-instruct",
        {SCENES: 1, SIGNS: 1, "easyvqa-train": 1, "photos": 1},
        ("train.pack_tokens=3648", "train.modules.decoder=1.5e-3"),
    ),
    ("dense", "nano-instruct", _DENSE | {"photos": 2}, _further(1.0e-3, 1150)),
    ("names", "nano-instruct", _DENSE | {"photos": 4}, _further(5.0e-4, 330)),
    ("positions", "nano-instruct", {f"{SCENES}-places": 1}, _further(2.0e-3, 150)),
    ("retrieval", "nano-instruct", _RETRIEVAL, _further(2.0e-3, 800)),
    ("mixed", "nano-instruct", _MIXED, _further(1.5e-3, 1000)),
    ("everything", "nano-instruct", _MIXED | {SCENES: 1, SIGNS: 1}, _further(8.0e-4, 560)),
)
"""Stage 1, captions, and stage 2 with what it goes on with: folder, recipe, records and how often each, options.

Dense questions displace the names of photographs, which ``names`` brings back. Neither teaches to find the one of
several things that is asked about: that takes a time in which nothing else is. At last everything is asked at once,
and names most."""
_DRAWN_WORDS = 4096  # tokens, before those of people's captions
_NAME_REPEATS = 12  # so that every class's name is worth few tokens


@dataclass(frozen=True)
class Sizes:
    """How much is made and learnt; the defaults are the published model's."""

    scenes: int = 24_000
    signs: int = 8_000
    questions: int = 3_300
    text_scenes: int = 12_000
    tower_epochs: int = 6
    structured_epochs: int = 4
    photos: int | None = None
    overrides: tuple[str, ...] = ()


def build(photo_folder: Path, out: Path, *, sizes: Sizes | None = None, seed: int = 1, workers: int = 2) -> Path:
    """Run every step.

    Args:
        photo_folder: photographs to learn from; no labels are needed.
        out: folder for everything that is made.
        sizes: amounts; for a trial smaller than :class:`Sizes`' defaults.
        seed: of all pictures, questions and initial weights.
        workers: processes that draw pictures.

    Returns:
        The folder of the trained model.

    Raises:
        MobiLlamaVError: a folder without photographs, a missing extra, or files that another call left.
    """
    sizes = sizes or Sizes()
    data = out / "data"
    draw_pictures(data, sizes, seed=seed, workers=workers)
    crops = cut_photos(photo_folder, data, sizes, seed=seed)
    cache = see_with_stem(data, crops, sizes, out / "stem")
    write_photo_records(data, crops, cache, seed=seed)
    write_text(data, sizes, seed=seed)
    learn_vocabulary(data, out)
    learn_language(out, data, sizes, seed=seed)
    signs = see_signs(data, sizes, out / "stem-signs")
    start = make_tower(out, data, cache, signs, crops, sizes, seed=seed)
    cache_features(start, data, [cache, signs], out / "features")
    return two_stages(out, data, start, sizes, seed=seed)


# --- pictures and texts ---------------------------------------------------------------------------------------------


def draw_pictures(data: Path, sizes: Sizes, *, seed: int, workers: int) -> None:
    """Drawn scenes, held-out questions, and the public easy-VQA set."""
    if not (data / "easyvqa-train.json").exists():
        easyvqa.convert(data)
    if not (data / f"{HELD_OUT}-questions.jsonl").exists():
        write_questions(data, name=HELD_OUT, count=sizes.questions, seed=seed + 10, workers=workers)
    if not (data / f"{SCENES}-cells.npy").exists():
        write_split(data, name=SCENES, count=sizes.scenes, seed=seed, workers=workers)
    if not (data / f"{SIGNS}-cells.npy").exists():
        write_split(data, name=SIGNS, count=sizes.signs, seed=seed, styles=_SIGN_STYLES, workers=workers)
    for name, count, styles in ((SCENES, sizes.scenes, None), (SIGNS, sizes.signs, _SIGN_STYLES)):
        if not all((data / f"{name}-{kind}.json").exists() for kind in DENSE):
            write_dense_questions(data, name=name, count=count, seed=seed, styles=styles)


def cut_photos(folder: Path, data: Path, sizes: Sizes, *, seed: int) -> list[str]:
    """Crops of the photographs that are not held out; their paths below ``data``."""
    train, _ = photos.split(folder)
    listed = data / "crops.json"
    if not listed.exists():
        write_json(listed, photos.write_crops(train[: sizes.photos], data, seed=seed))
    return json.loads(listed.read_text(encoding="utf-8"))


def spec() -> ModelConfig:
    """The embedded model's before it learns photographs, whose words it lacks."""
    chosen = PRESETS["nano"].spec
    assert isinstance(chosen, ModelConfig)
    return replace(chosen, decoder=replace(chosen.decoder, vocab_size=_DRAWN_WORDS))


def see_with_stem(data: Path, crops: list[str], sizes: Sizes, folder: Path) -> Any:
    """The stem's view of every training picture, a :class:`~nano.stemcache.StemCache`."""
    from nano import stemcache
    from nano.stem import load_stem

    easy = [str(path.relative_to(data)) for path in find_images(data / "images" / "easyvqa" / "train")]
    names = [*crops, *easy, *scene_names(SCENES, sizes.scenes)]
    return stemcache.compute(load_stem(), spec().image, data, names, folder)


def see_signs(data: Path, sizes: Sizes, folder: Path) -> Any:
    """The stem's view of the pictures that only the tower's reader learns from."""
    from nano import stemcache
    from nano.stem import load_stem

    return stemcache.compute(load_stem(), spec().image, data, scene_names(SIGNS, sizes.signs), folder)


def scene_names(split: str, count: int) -> list[str]:
    """Paths of a split's drawn pictures, in their order."""
    return [f"images/{split}/{i:06d}.png" for i in range(count)]


def write_photo_records(data: Path, crops: list[str], cache: Any, *, seed: int) -> None:
    """Conversations and captions about the crops, from what the stem's classifier says of them."""
    if (data / "photos-permuted.npz").exists():
        return
    rows = np.stack([cache.probabilities[cache.row[name]] for name in crops]).astype(np.float32)
    colors = {name: photos.main_color(load_image(data / name)) for name in crops}
    told, captions, permuted = photos.records(colors, rows, seed=seed)
    names, named = photos.namings(colors, times=_NAMINGS, seed=seed)
    permuted |= named
    write_json(data / "photos.json", told)
    write_json(data / "photos-names.json", names)
    write_json(data / "photos-captions.json", captions)
    np.savez_compressed(
        data / "photos-permuted.npz",
        names=np.array(list(permuted)),
        probabilities=np.stack(list(permuted.values())).astype(np.float16),
    )


def write_text(data: Path, sizes: Sizes, *, seed: int) -> None:
    """Conversations about pictures that are told in words, from which the decoder learns the language and to look."""
    if (data / f"{TEXT}.json").exists():
        return
    rng = random.Random(f"text:{seed}")
    scenes = json.loads((data / f"{SCENES}.json").read_text(encoding="utf-8"))[: sizes.text_scenes]
    drawn = [training_scene(SCENES, seed, DEFAULT_STYLES, index)[0] for index in range(len(scenes))]
    captions = json.loads((data / "easyvqa-train-captions.json").read_text(encoding="utf-8"))
    said = {record["image"]: record["conversations"][1]["value"] for record in captions}
    easy = json.loads((data / "easyvqa-train.json").read_text(encoding="utf-8"))
    easy = [record for record in easy if record["image"] in said][: sizes.text_scenes // 6]
    records = [photos.in_words(each, structured_words(scene)) for each, scene in zip(scenes, drawn, strict=True)]
    records += [photos.in_words(each, said[each["image"]]) for each in easy]
    records += [photos.imagined(index, rng) for _ in range(_PHOTO_TALKS) for index in range(len(classes.all_names()))]
    rng.shuffle(records)
    write_json(data / f"{TEXT}.json", records)


def learn_vocabulary(data: Path, out: Path) -> None:
    """``tokenizer.json`` from the texts of the conversations and the classes' names."""
    if not (out / "tokenizer.json").exists():
        vocabulary.train_tokenizer(_texts(data), out / "tokenizer.json", vocab_size=spec().decoder.vocab_size)


def _texts(data: Path) -> Iterator[str]:
    for record in json.loads((data / f"{TEXT}.json").read_text(encoding="utf-8")):
        yield f"\n{record['conversations'][0]['value']}"  # after an image's line; later turns follow a space
        yield "".join(f" {turn['value']}" for turn in record["conversations"])
        yield f" {SYSTEM} USER: ASSISTANT:"
    for name in classes.all_names():
        yield from [f" {name}"] * _NAME_REPEATS


# --- models ---------------------------------------------------------------------------------------------------------


def learn_language(out: Path, data: Path, sizes: Sizes, *, seed: int) -> None:
    """The decoder alone, on text."""
    from nano.assemble import write_start

    if (out / "language" / "final").exists():
        return
    start = write_start(out / "language-start", spec(), out / "tokenizer.json", seed=seed)
    records = [(data / f"{TEXT}.json", 1)]
    train_stage("nano-text", start, out / "language", records, data, *sizes.overrides, seed=seed)


def make_tower(out: Path, data: Path, cache: Any, signs: Any, crops: list[str], sizes: Sizes, *, seed: int) -> Path:
    """Train the tower's blocks and what it tells in words, and put it before the decoder."""
    from nano.assemble import Drawn, assemble

    folder = out / "start"
    if not folder.exists():
        labels = np.load(data / f"{SCENES}-cells.npy", mmap_mode="r")
        drawn = []
        for name, seen, count, styles in (
            (SCENES, cache, sizes.scenes, DEFAULT_STYLES),
            (SIGNS, signs, sizes.signs, _SIGN_STYLES),
        ):
            scenes = [training_scene(name, seed, styles, index)[0] for index in range(count)]
            drawn.append(Drawn(seen, scene_names(name, count), scenes))
        options = {"epochs": sizes.tower_epochs, "seed": seed, "state": out / "tower.pt"}
        assemble(out / "language" / "final", cache, drawn, labels, crops, folder, sizes.structured_epochs, **options)
    return folder


def cache_features(start: Path, data: Path, caches: list[Any], folder: Path) -> None:
    """The frozen tower's outputs for every training picture, from the stem's caches."""
    from nano.assemble import write_features

    permuted = np.load(data / "photos-permuted.npz")
    dense = [json.loads((data / f"{name}-dense.json").read_text(encoding="utf-8")) for name in (SCENES, SIGNS)]
    alone = [record["image"] for told in dense for record in told if record["image"].endswith(TOKENS_ALONE)]
    write_features(start, caches, permuted["names"].tolist(), permuted["probabilities"], alone, data, folder)


def two_stages(out: Path, data: Path, start: Path, sizes: Sizes, *, seed: int) -> Path:
    """Stage 1 (projector), then projector and decoder: captions, stage 2, and dense; the folder of the result."""
    last = start
    for number, (name, recipe, told, options) in enumerate(_STAGES):
        records = [(data / f"{kind}.json", repeat) for kind, repeat in told.items()]
        features = f"data.features={out / 'features'}"
        more = (features, *options, *sizes.overrides)
        train_stage(recipe, last, out / name, records, data, *more, seed=seed + number)
        last = out / name / "final"
    return last


def train_stage(
    recipe: str, start: Path, output: Path, records: list[tuple[Path, int]], images: Path, *more: str, seed: int
) -> None:
    """Train by a recipe with records that are repeated so often, unless the result is there; a killed one goes on."""
    from mobillama_v.train.recipe_files import load_recipe
    from mobillama_v.train.run import run

    if (output / "final").exists():
        return
    overrides = [
        f"model.start={start}",
        f"data.json={json.dumps([{'path': str(path), 'repeat': repeat} for path, repeat in records])}",
        f"data.image_root={images}",
        f"output={output}",
        f"train.seed={seed}",
        *more,
    ]
    run(load_recipe(recipe, overrides), resume=output.exists())


def export(trained: Path, folder: Path) -> None:
    """Write a trained model in half precision, as the package ships it."""
    from nano.assemble import write_half

    folder.mkdir(parents=True, exist_ok=True)
    write_half(trained, folder)
    shutil.copyfile(trained / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    # Half precision is for the file: a CPU computes in single, and transformers takes the type from here.
    text = json.dumps({**config, "dtype": "float32"}, indent=2)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)
