"""The embedded model from nothing to weights: pictures, tokenizer, language, tower, the two stages, export.

Every step leaves its result in the output folder and is skipped where that is there, so a killed run goes on.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobillama_v.images import find_images
from mobillama_v.presets import PRESETS
from mobillama_v.prompts import SYSTEM
from mobillama_v.specs import ModelSpec
from mobillama_v.train.nano import classes, easyvqa, photos, vocabulary
from mobillama_v.train.nano.build_scenes import (
    ACCOUNT,
    DEFAULT_STYLES,
    training_scene,
    write_drills,
    write_questions,
    write_split,
)
from mobillama_v.train.nano.captions import account

SCENES, SIGNS, HELD_OUT, TEXT = "scenes", "signs", "held-out", "text"
_SIGN_STYLES = {"word": 0.6, "two_words": 0.4}  # pictures with words, from which the tower learns to read
_PHOTO_TALKS = 4  # text-only conversations about each class
_NAMINGS = 6  # conversations about each class over photographs of something else
_CAPTIONS = ("train.pack_tokens=2560", "train.modules.decoder=1.5e-3")
_INSTRUCT = ("train.pack_tokens=3648", "train.modules.decoder=1.5e-3")
_PACKED = ("train.pack_tokens=3648", "data.max_length=640")
_DRILLED = {f"{SCENES}-drills": 1, f"{SIGNS}-drills": 1, "easyvqa-train": 1}
_LOOKUPS = {f"{SCENES}-lookups": 1, f"{SIGNS}-lookups": 1}
_GOES_ON = (
    ("drilled", _DRILLED | {"photos": 2}, ("train.modules.decoder=1.0e-3", "train.max_steps=1150")),
    ("named", _DRILLED | {"photos": 4}, ("train.modules.decoder=5.0e-4", "train.max_steps=330")),
    ("placed", {f"{SCENES}-places": 1}, ("train.modules.decoder=2.0e-3", "train.max_steps=150")),
    ("lookups", _LOOKUPS, ("train.modules.decoder=2.0e-3", "train.max_steps=800")),
    (
        "mixed",
        _DRILLED | _LOOKUPS | {"photos": 3, "photos-names": 4},
        ("train.modules.decoder=1.5e-3", "train.max_steps=1000"),
    ),
    (
        "everything",
        {SCENES: 1, SIGNS: 1} | _DRILLED | _LOOKUPS | {"photos": 3, "photos-names": 4},
        ("train.modules.decoder=8.0e-4", "train.max_steps=560"),
    ),
)
"""How stage 2 goes on: folder, records and how often each, options. Drills displace the names of photographs, which the
second brings back. Neither teaches to find the one of several things that is asked about: that takes a time in which
nothing else is. At last everything is asked at once, and names most."""
_NAME_REPEATS = 12  # so that every class's name is worth few tokens


@dataclass(frozen=True)
class Sizes:
    """How much is made and learnt; the defaults are the published model's."""

    scenes: int = 24_000
    signs: int = 8_000
    questions: int = 3_300
    text_scenes: int = 12_000
    tower_epochs: int = 6
    account_epochs: int = 4
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
        if not (data / f"{name}-drills.json").exists():
            write_drills(data, name=name, count=count, seed=seed, styles=styles)


def cut_photos(folder: Path, data: Path, sizes: Sizes, *, seed: int) -> list[str]:
    """Crops of the photographs that are not held out; their paths below ``data``."""
    train, _ = photos.split(folder)
    listed = data / "crops.json"
    if not listed.exists():
        _write(listed, photos.write_crops(train[: sizes.photos], data, seed=seed))
    return json.loads(listed.read_text(encoding="utf-8"))


def spec() -> ModelSpec:
    """The embedded model's."""
    chosen = PRESETS["nano"].spec
    assert isinstance(chosen, ModelSpec)
    return chosen


def see_with_stem(data: Path, crops: list[str], sizes: Sizes, folder: Path) -> Any:
    """The stem's view of every training picture, a :class:`~mobillama_v.train.nano.stemcache.StemCache`."""
    from mobillama_v.train.nano import stemcache
    from mobillama_v.train.nano.stem import load_stem

    easy = [str(path.relative_to(data)) for path in find_images(data / "images" / "easyvqa" / "train")]
    names = [*crops, *easy, *scene_names(SCENES, sizes.scenes)]
    return stemcache.compute(load_stem(), spec().image, data, names, folder)


def see_signs(data: Path, sizes: Sizes, folder: Path) -> Any:
    """The stem's view of the pictures that only the tower's reader learns from."""
    from mobillama_v.train.nano import stemcache
    from mobillama_v.train.nano.stem import load_stem

    return stemcache.compute(load_stem(), spec().image, data, scene_names(SIGNS, sizes.signs), folder)


def scene_names(split: str, count: int) -> list[str]:
    """Paths of a split's drawn pictures, in their order."""
    return [f"images/{split}/{i:06d}.png" for i in range(count)]


def write_photo_records(data: Path, crops: list[str], cache: Any, *, seed: int) -> None:
    """Conversations and captions about the crops, from what the stem's classifier says of them."""
    if (data / "photos-permuted.npz").exists():
        return
    rows = np.stack([cache.probabilities[cache.row[name]] for name in crops]).astype(np.float32)
    told, captions, permuted = photos.records(crops, rows, data, seed=seed)
    names, named = photos.namings(crops, data, times=_NAMINGS, seed=seed)
    permuted |= named
    _write(data / "photos.json", told)
    _write(data / "photos-names.json", names)
    _write(data / "photos-captions.json", captions)
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
    records = [photos.in_words(each, account(scene)) for each, scene in zip(scenes, drawn, strict=True)]
    records += [photos.in_words(each, said[each["image"]]) for each in easy]
    records += [photos.imagined(index, rng) for _ in range(_PHOTO_TALKS) for index in range(len(classes.all_names()))]
    rng.shuffle(records)
    _write(data / f"{TEXT}.json", records)


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
    from mobillama_v.train.nano.assemble import write_start

    if (out / "language" / "final").exists():
        return
    start = write_start(out / "language-start", spec(), out / "tokenizer.json", seed=seed)
    _train("nano-text", start, out / "language", [(data / f"{TEXT}.json", 1)], data, sizes, seed=seed)


def make_tower(out: Path, data: Path, cache: Any, signs: Any, crops: list[str], sizes: Sizes, *, seed: int) -> Path:
    """Train the tower's blocks and what it tells in words, and put it before the decoder."""
    from mobillama_v.train.nano.assemble import Drawn, assemble

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
        assemble(out / "language" / "final", cache, drawn, labels, crops, folder, sizes.account_epochs, **options)
    return folder


def cache_features(start: Path, data: Path, caches: list[Any], folder: Path) -> None:
    """The frozen tower's outputs for every training picture, from the stem's caches."""
    from mobillama_v.train.nano.assemble import write_features

    permuted = np.load(data / "photos-permuted.npz")
    drills = [json.loads((data / f"{name}-drills.json").read_text(encoding="utf-8")) for name in (SCENES, SIGNS)]
    alone = [record["image"] for told in drills for record in told if record["image"].endswith(ACCOUNT)]
    write_features(start, caches, permuted["names"].tolist(), permuted["probabilities"], alone, folder)


def two_stages(out: Path, data: Path, start: Path, sizes: Sizes, *, seed: int) -> Path:
    """Stage 1 (projector), then projector and decoder: captions, stage 2, and drills; the folder of the result."""
    features = f"data.features={out / 'features'}"

    def told(*names: str, photographs: int) -> list[tuple[Path, int]]:
        """Records of each kind once, and those of photographs as often as that."""
        return [(data / f"{name}.json", photographs if name.startswith("photos") else 1) for name in names]

    captions = told(*(f"{kind}-captions" for kind in (SCENES, "easyvqa-train", "photos")), photographs=3)
    _train("nano-align", start, out / "align", captions, data, sizes, features, seed=seed)
    last = out / "align" / "final"
    _train("nano-caption", last, out / "caption", captions, data, sizes, features, *_CAPTIONS, seed=seed)
    talks = told(SCENES, SIGNS, "easyvqa-train", "photos", photographs=1)
    last = out / "caption" / "final"
    _train("nano-instruct", last, out / "instruct", talks, data, sizes, features, *_INSTRUCT, seed=seed)
    last = out / "instruct" / "final"
    for number, (name, learnt, options) in enumerate(_GOES_ON, start=1):
        records = [(data / f"{kind}.json", repeat) for kind, repeat in learnt.items()]
        _train(
            "nano-instruct", last, out / name, records, data, sizes, features, *_PACKED, *options, seed=seed + number
        )
        last = out / name / "final"
    return last


def _train(
    recipe: str,
    start: Path,
    output: Path,
    records: list[tuple[Path, int]],
    data: Path,
    sizes: Sizes,
    *more: str,
    seed: int,
) -> None:
    from mobillama_v.train.recipe import load_recipe
    from mobillama_v.train.trainer import run

    if (output / "final").exists():
        return
    overrides = [
        f"model.start={start}",
        f"data.json={json.dumps([{'path': str(path), 'repeat': repeat} for path, repeat in records])}",
        f"data.image_root={data}",
        f"output={output}",
        f"train.seed={seed}",
        *more,
        *sizes.overrides,
    ]
    run(load_recipe(recipe, overrides), resume=output.exists())


def export(trained: Path, folder: Path) -> None:
    """Write a trained model in half precision, as the package ships it."""
    from mobillama_v.train.nano.assemble import write_half

    folder.mkdir(parents=True, exist_ok=True)
    write_half(trained, folder)
    shutil.copyfile(trained / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    # Half precision is for the file: a CPU computes in single, and transformers takes the type from here.
    text = json.dumps({**config, "dtype": "float32"}, indent=2)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")


def _write(path: Path, value: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)
