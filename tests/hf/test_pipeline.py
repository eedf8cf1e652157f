"""Auto classes and the pipeline of transformers, whatever was imported first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chats import SLOTS, answer, chat, make_tokenizer, picture

from mobillama_v import MobiLlamaVConfig, MobiLlamaVProcessor
from mobillama_v.generate import Sampling
from mobillama_v.hf.image_processing import MobiLlamaVImageProcessor
from tiny import DECODER, save_nano_like


def test_auto_classes_know_the_processor(folder: Path, processor: MobiLlamaVProcessor, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    assert isinstance(AutoProcessor.from_pretrained(folder), MobiLlamaVProcessor)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, MobiLlamaVProcessor) and again.tokens_per_image == SLOTS
    images = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(images, MobiLlamaVImageProcessor) and images.transform == processor.image_processor.transform
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 2


REGISTERED = """
{imports}
processor = AutoProcessor.from_pretrained({folder!r})
assert type(processor).__name__ == "MobiLlamaVProcessor", type(processor)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import mobillama_v; from transformers import AutoProcessor",
        "from transformers import AutoProcessor; import mobillama_v",
    ],
)
def test_registered_whichever_import_comes_first(imports: str, tmp_path: Path) -> None:
    image = {"size": 32, "mode": "squash"}
    text = DECODER | {"vocab_size": 400}
    config = MobiLlamaVConfig(text_config=text, tower={"model": "ViT-B-32-quickgelu"}, image=image)
    config.save_pretrained(tmp_path)
    make_tokenizer("bytes").save(str(tmp_path / "tokenizer.json"))
    code = REGISTERED.format(imports=imports, folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.parametrize("given", ["question", "chat"])
def test_the_pipeline_says_what_our_own_generation_says(
    given: str, folder: Path, model, processor: MobiLlamaVProcessor
) -> None:
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=str(folder), dtype=torch.float32)
    assert isinstance(pipe.processor, MobiLlamaVProcessor)
    options = {"generate_kwargs": {"max_new_tokens": 12, "do_sample": False}, "return_full_text": False}
    if given == "question":
        said = pipe(images=picture(6), text="what is this?", **options)
        ours = answer(model, processor, processor(images=picture(6), text="what is this?"), 12)
        assert said[0]["generated_text"].strip() == ours[0].strip() != ""
        return
    conversations = [chat((picture(7), "what is this?"), "a cat", "on what?"), chat((picture(8), "a dog?"))]
    ours = [
        answer(model, processor, processor.apply_chat_template(c, tokenize=True, return_dict=True), 12)[0].strip()
        for c in conversations
    ]
    assert ours[0] != ours[1]
    assert pipe(text=conversations[0], **options)[0]["generated_text"].strip() == ours[0]
    both = pipe(text=conversations, batch_size=2, **options)
    assert [each[0]["generated_text"].strip() for each in both] == ours
    full = pipe(text=conversations[1], max_new_tokens=12, generate_kwargs={"do_sample": False})
    assert full[0]["generated_text"][-1]["content"].strip() == ours[1]


def test_the_pipeline_says_what_the_assistant_says(tmp_path: Path) -> None:
    """On a folder as embedded models are: the hybrid tower, half-precision weights, and the dtype to compute in."""
    from transformers import pipeline

    from mobillama_v import load

    save_nano_like(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    path = tmp_path / "photo.jpg"
    picture(size=(700, 500)).save(path)
    assistant_says = load(str(tmp_path), device="cpu").ask([path], "what is this?", Sampling(max_new_tokens=12)).text
    pipe = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    content = [{"type": "image", "path": str(path)}, {"type": "text", "text": "what is this?"}]
    options = {"generate_kwargs": {"max_new_tokens": 12, "do_sample": False}, "return_full_text": False}
    said = pipe(text=[{"role": "user", "content": content}], **options)[0]["generated_text"]
    assert said.strip() == assistant_says.strip() != ""


def test_the_end_token_ends_the_pipeline_s_answer(folder: Path) -> None:
    """With no generation_config.json the ids of the end and the padding come from config.json."""
    from transformers import AutoModelForImageTextToText

    config = AutoModelForImageTextToText.from_pretrained(folder).generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
