"""Recipes are typed: every packaged one parses, and what is wrong is named."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

from mobillama_v.errors import RecipeError
from mobillama_v.train.recipe import DataFile
from mobillama_v.train.recipe_files import key_help, load_recipe, recipe_names, to_yaml

FILES = sorted((Path(__file__).parent.parent.parent / "train" / "recipes").glob("*.yaml"))


def test_the_packaged_recipes_are_found() -> None:
    assert recipe_names() == [path.stem for path in FILES]
    assert {"nano-text", "nano-align", "nano-instruct"} <= set(recipe_names())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_packaged_recipe_parses_and_survives_writing(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe.train.modules.learning()
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe))
    assert load_recipe(str(copy)) == recipe


def test_overrides_are_typed() -> None:
    recipe = load_recipe(
        "nano-instruct",
        [
            "data.json=[a.json, {path: b.jsonl, repeat: 2}]",
            "train.modules.decoder=2e-5",
            "train.modules.projector=null",
            "train.epochs=2",
            "train.precision=bf16",
            "train.group_by_length=false",
            "train.betas=[0.9, 0.98]",
            "data.max_length=77",
            "output=12",
        ],
    )
    assert recipe.data.json == (DataFile("a.json", 1), DataFile("b.jsonl", 2))
    assert recipe.train.modules.learning() == {"decoder": 2e-5}
    assert recipe.train.epochs == 2.0
    assert isinstance(recipe.train.epochs, float)
    assert recipe.train.precision == "bf16"
    assert not recipe.train.group_by_length
    assert recipe.train.betas == (0.9, 0.98)
    assert recipe.data.max_length == 77
    assert recipe.output == "12"
    assert load_recipe("nano-text", ["data.json=a.json"]).data.json == (DataFile("a.json"),)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.bach_size=3", r"train\.bach_size is unknown \(did you mean 'batch_size'\?\)"),
        ("trian.batch_size=3", r"trian is unknown \(did you mean 'train'\?\)"),
        ("train.batch_size=3.5", "must be a value of type int, not 3.5"),
        ("train.batch_size=true", "must be a value of type int"),
        ("train.batch_size=0", "must be at least 1"),
        ("train.precision=fp8", "one of fp32, bf16"),
        ("train.modules.decoder=fast", "must be a value of type float, not 'fast'"),
        ("train.modules.decoder=-1", "must be above 0"),
        ("train.modules.embeddings=0", "must be above 0"),
        ("train.deepspeed=zero2", "muon needs whole matrices"),
        ("train.pack_tokens=1", "must be at least 2"),
        ("train.modules=null", "nothing would learn"),
        ("train=3", "must be a section"),
        ("train.betas=0.9", "must be 2 values"),
        ("train.betas=[0.9, 1.0]", "from 0 to 1"),
        ("train.warmup_ratio=1", "from 0 to 1"),
        ("train.epochs=0", "above 0"),
        ("train.max_steps=0", "at least 1"),
        ("train.weight_decay=-1", "must be at least 0"),
        ("train.modules.tower=1e-5", "data.features needs a frozen tower"),
        ("data.json=[{repeat: 2}]", r"data\.json\[0\]\.path is missing"),
        ("data.json=[{path: a, repeat: 0}]", "repeat must be at least 1"),
        ("data.max_length=1", "at least 2"),
        ("data.template=chat", "one of plain, v1"),
        ("nothing", "not of the form"),
        ("data.json=[", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(override: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe("nano-instruct", [override])


def test_every_key_has_a_line_of_help() -> None:
    lines = key_help().splitlines()
    assert any(re.fullmatch(r"train\.modules\.decoder +null +the language model and its head", line) for line in lines)
    for line in lines:
        key, *rest = line.split(maxsplit=1)
        assert rest, f"{key} says nothing"
    keys = {line.split()[0] for line in lines}
    assert {"name", "data.json", "train.betas", "output"} <= keys
    assert not keys & {"data", "train", "train.modules"}


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'nano-align'"):
        load_recipe("nano-aline")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(RecipeError, match="no mapping"):
        load_recipe(str(tmp_path / "list.yaml"))


def test_what_only_the_user_knows_is_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"leaves model\.start open"):
        load_recipe("nano-align").require_paths()
    with pytest.raises(RecipeError, match=r"leaves data\.json open"):
        load_recipe("nano-align", ["model.start=x", "output=y"]).require_paths()


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
MERGED = BOMB.replace("[x, x]", "{x: 1}").replace("[*", "{<<: [*").replace("]", "]}").replace("}}", "}")


@pytest.mark.parametrize(
    "text",
    [
        f"{BOMB}\ndata: {{json: *a11}}",
        MERGED,
        "a: &a [*a]",
        "[" * 100_000,
        f"name: 1{'0' * 5000}",
        "name: 2024-99-99",
        f"name: x\ntrain: {{seed: 0x{'f' * 6000}}}",
        f"name: x\ntrain: {{seed: 1{'0' * 400}}}",
        "name: x\ntrain: {seed: -1}",
        f"name: x\ntrain: {{epochs: 1{'0' * 400}}}",
        f"name: x\ntrain: {{epochs: 0x{'f' * 6000}}}",
        "name: x\ntrain: {epochs: .nan}",
        "name: x\ntrain: {epochs: inf}",
        'name: "\\ud800"',
        'name: "a\\0b"',
        "null: 1",
        "? 0x" + "f" * 900 + "\n: 1",
        "? [1]\n: 2",
        "name: !!binary aaaa",
        "name: !!set {a}",
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_hurts_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    tracemalloc.start()
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert tracemalloc.get_traced_memory()[1] < 50e6  # the bombs mean gigabytes
    tracemalloc.stop()
    assert len(str(error.value)) < 1000


def test_an_alias_of_one_value_is_that_value(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: &n x\noutput: *n\ntrain: {modules: {projector: &lr 1e-3, decoder: *lr}}")
    recipe = load_recipe(str(path))
    assert (recipe.output, recipe.train.modules.decoder) == ("x", 1e-3)
