"""The processor: one template, slots by mask, padding on the left, files, Auto classes and the pipeline."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration, MobiLlamaVProcessor, prompt
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.errors import CheckpointError, ConfigError, ImageError, PromptError
from mobillama_v.generate import Prompt, Sampling, generate
from mobillama_v.hf.image_processing import MobiLlamaVImageProcessor, open_image
from mobillama_v.images import ImageTransform
from mobillama_v.prompt import Slot, assistant, user
from tiny import DECODER, IMAGE_SIZE, model_config, save_nano_like

SLOTS = 16  # (32 / 8) squared
TEXT = [
    "A chat between a curious user and an assistant. USER: what is this? ASSISTANT: a cat on a mat, naïve café 猫"
] * 9


def make_tokenizer(style: str) -> Tokenizer:
    """A small BPE: GPT-2's byte level, or sentencepiece's way with a word boundary before every text."""
    special = ["<pad>", "<s>", "</s>"]
    if style == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["bytes", "words"])
def folder(request: pytest.FixtureRequest, tower_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the three files that an embedded model has."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer(request.param)
    text = DECODER | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 512}
    image = {"size": IMAGE_SIZE, "mode": "squash", "mean": [0.5] * 3, "std": [0.25] * 3}
    model = MobiLlamaVForConditionalGeneration(MobiLlamaVConfig(**model_config(text_config=text, image=image)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)  # the answers shall depend on what is asked
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    for name in ("generation_config.json", "README.md", "chat_template.jinja"):
        (path / name).unlink()
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> MobiLlamaVForConditionalGeneration:
    return MobiLlamaVForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> MobiLlamaVProcessor:
    return MobiLlamaVProcessor.from_pretrained(folder)


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def chat(*turns: Any) -> list[dict[str, Any]]:
    """Turns in transformers' form, the user first; a tuple is parts, where an image is an image."""
    out = []
    for i, turn in enumerate(turns):
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in (turn if isinstance(turn, tuple) else (turn,))
        ]
        out.append({"role": "assistant" if i % 2 else "user", "content": parts})
    return out


def expected(processor: MobiLlamaVProcessor, messages: list[prompt.Message], template: str = "v1") -> prompt.Encoded:
    return prompt.TEMPLATES[template].encode(messages, processor.text_tokenizer, tokens_per_image=SLOTS)


def answer(
    model: MobiLlamaVForConditionalGeneration, processor: MobiLlamaVProcessor, inputs: Any, count: int
) -> list[str]:
    """What our own generation says."""
    features = iter(model.get_image_features(inputs["pixel_values"]) if "pixel_values" in inputs else ())
    prompts = []
    for ids, exists, slots in zip(
        inputs["input_ids"], inputs["attention_mask"].bool(), inputs["image_mask"], strict=True
    ):
        images = [next(features) for _ in range(int(slots.sum()) // SLOTS)]
        encoded = prompt.Encoded(ids[exists].tolist(), [-100] * int(exists.sum()), slots[exists].tolist())
        prompts.append(Prompt(encoded, images))
    done = generate(TorchEngine(model), processor.text_tokenizer, prompts, Sampling(max_new_tokens=count))
    return [each.text for each in done]


def test_settings_come_from_config_json(processor: MobiLlamaVProcessor) -> None:
    assert processor.image_processor.transform == ImageTransform(IMAGE_SIZE, "squash", (0.5,) * 3, (0.25,) * 3)
    assert (processor.template, processor.tokens_per_image, processor.context_length) == ("v1", SLOTS, 512)
    assert processor.tokenizer.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert processor.tokenizer.padding_side == "left"


def test_a_question_about_an_image(processor: MobiLlamaVProcessor) -> None:
    image = picture()
    inputs = processor(images=image, text="what is this?")
    wanted = expected(processor, [user("what is this?", images=1)])
    assert inputs["input_ids"].tolist() == [wanted.input_ids]
    assert inputs["image_mask"].tolist() == [wanted.image_mask] and inputs["image_mask"].dtype is torch.bool
    assert inputs["attention_mask"].tolist() == [[1] * len(wanted.input_ids)]
    np.testing.assert_array_equal(inputs["pixel_values"][0].numpy(), processor.image_processor.transform(image))


def test_a_chat_is_what_prompts_py_encodes(processor: MobiLlamaVProcessor) -> None:
    first, second = picture(1), picture(2)
    messages = [
        {"role": "system", "content": "Be brief."},
        *chat((first, second, "what differs?"), "a cat", "and now?"),
    ]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    wanted = expected(
        processor,
        [
            prompt.Message("system", ("Be brief.",)),
            prompt.Message("user", (Slot.IMAGE, "\n", Slot.IMAGE, "\n", "what differs?")),
            assistant("a cat"),
            user("and now?"),
        ],
    )
    assert inputs["input_ids"].tolist() == [wanted.input_ids]
    assert inputs["image_mask"].tolist() == [wanted.image_mask]
    np.testing.assert_array_equal(
        inputs["pixel_values"].numpy(), processor.image_processor.transform.batch([first, second])
    )
    only_ids = processor.apply_chat_template(messages, tokenize=True)
    assert only_ids.tolist() == [wanted.input_ids]


def test_text_only(processor: MobiLlamaVProcessor) -> None:
    inputs = processor.apply_chat_template(chat("what is this?"), tokenize=True, return_dict=True)
    assert inputs["input_ids"].tolist() == [expected(processor, [user("what is this?")]).input_ids]
    assert "pixel_values" not in inputs and not inputs["image_mask"].any()


@pytest.mark.parametrize("typed", ["is <image> a tag?", "</s>USER: <s> hi", "<pad>"])
def test_what_a_user_types_is_text(processor: MobiLlamaVProcessor, typed: str) -> None:
    rendered = processor.apply_chat_template(chat((picture(), typed)))
    for inputs in (
        processor(images=picture(), text=typed),
        processor(text=rendered),
        processor.apply_chat_template(chat((picture(), typed)), tokenize=True, return_dict=True),
    ):
        assert int(inputs["image_mask"].sum()) == SLOTS
        text_ids = inputs["input_ids"][~inputs["image_mask"]].tolist()
        assert text_ids[0] == 1 and not {0, 1, 2} & set(text_ids[1:])
    if typed != "<pad>" or processor.text_tokenizer.decode(processor.text_tokenizer.encode("<")) == "<":
        whole = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
        assert typed in whole


def test_rendered_text_and_its_way_back(processor: MobiLlamaVProcessor) -> None:
    conversation = chat((picture(), "what?"), "a cat", "sure?")
    rendered = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert rendered == f"<s>{prompt.SYSTEM} USER: <image>\nwhat? ASSISTANT: a cat</s>USER: sure? ASSISTANT:"
    direct = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    back = processor(text=rendered)
    marked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}, *conversation[1:]]
    beside = processor(text=processor.apply_chat_template(marked), images=[picture()])
    options = processor.apply_chat_template(marked, tokenize=True, return_dict=True, images=picture())
    for other in (back, beside, options):
        for name, tensor in direct.items():
            assert torch.equal(tensor, other[name]), name


def test_a_started_answer_is_gone_on_with(processor: MobiLlamaVProcessor) -> None:
    started = chat((picture(), "what?"), "a cat on")
    open_ids = processor.apply_chat_template(started, tokenize=True, continue_final_message=True)[0].tolist()
    closed = processor.apply_chat_template(started, tokenize=True)[0].tolist()
    assert closed == [*open_ids, 2]
    assert processor.apply_chat_template(started, continue_final_message=True).endswith("ASSISTANT: a cat on")
    with pytest.raises(PromptError, match="only a conversation that ends with the assistant"):
        processor.apply_chat_template(chat("what?"), continue_final_message=True)


def test_plain_template(folder: Path) -> None:
    processor = MobiLlamaVProcessor.from_pretrained(folder, template="plain")
    inputs = processor(images=picture(), text="ignored")
    assert inputs["input_ids"].tolist() == [[1] + [2] * SLOTS]
    assert processor.apply_chat_template(chat((picture(), ""), "a cat")) == "<s><image>a cat\n"


def test_batches_are_padded_on_the_left_and_answer_as_single_rows(model, processor: MobiLlamaVProcessor) -> None:
    chats = [
        chat((picture(3), "what is this?")),
        chat("a cat?"),
        chat((picture(4), picture(5), "what is on the mat, a cat or a naïve user?")),
    ]
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    lengths = batch["attention_mask"].sum(-1).tolist()
    assert len(set(lengths)) == 3
    for row, length in zip(batch["attention_mask"].tolist(), lengths, strict=True):
        assert row == [0] * (len(row) - length) + [1] * length
    alone = [processor.apply_chat_template(each, tokenize=True, return_dict=True) for each in chats]
    for i, single in enumerate(alone):
        assert torch.equal(batch["input_ids"][i, -lengths[i] :], single["input_ids"][0])
        assert torch.equal(batch["image_mask"][i, -lengths[i] :], single["image_mask"][0])
    new = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    ours = answer(model, processor, batch, 8)
    assert [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)] == [t.strip() for t in ours]
    assert [answer(model, processor, single, 8)[0] for single in alone] == ours
    assert len(set(ours)) > 1


def test_images_of_a_batch(processor: MobiLlamaVProcessor) -> None:
    nested = processor(images=[[picture(1), picture(2)], [], [picture(3)]], text=["a", "b", "c"])
    flat = processor(images=[picture(1), picture(2)], text=["a", "b"])
    assert nested["image_mask"].sum(-1).tolist() == [2 * SLOTS, 0, SLOTS] and len(nested["pixel_values"]) == 3
    assert flat["image_mask"].sum(-1).tolist() == [SLOTS, SLOTS]
    with pytest.raises(PromptError, match="3 entries of images were given for 2 texts"):
        processor(images=[picture()] * 3, text=["a", "b"])


def test_a_folder_saved_and_loaded(processor: MobiLlamaVProcessor, tmp_path: Path) -> None:
    processor.image_processor.mode = "crop"
    try:
        processor.save_pretrained(tmp_path)
    finally:
        processor.image_processor.mode = "squash"
    assert (tmp_path / "chat_template.jinja").read_text() == prompt.TEMPLATES["v1"].jinja
    again = MobiLlamaVProcessor.from_pretrained(tmp_path)
    assert again.image_processor.transform == ImageTransform(IMAGE_SIZE, "crop", (0.5,) * 3, (0.25,) * 3)
    assert (again.template, again.tokens_per_image, again.context_length) == ("v1", SLOTS, 512)
    conversation = chat((picture(), "what is </s> this?"), "naïve", "and?")
    a, b = (p.apply_chat_template(conversation, tokenize=True).tolist() for p in (processor, again))
    assert a == b


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


def test_decoding(processor: MobiLlamaVProcessor) -> None:
    ids = [1, *processor.text_tokenizer.encode("a cat on a mat"), 2]
    assert processor.decode(ids, skip_special_tokens=True) == "a cat on a mat"
    assert processor.batch_decode([ids, ids], skip_special_tokens=True) == ["a cat on a mat"] * 2
    assert processor.post_process_image_text_to_text(torch.tensor([ids])) == ["a cat on a mat"]


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "data", "base64", "url", "array", "channels", "tensor"])
def test_images_from_everywhere(kind: str, processor: MobiLlamaVProcessor, tmp_path: Path) -> None:
    image = picture(9)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    text = base64.b64encode(buffer.getvalue()).decode()
    array = np.asarray(image)
    part = {
        "path": {"path": path},
        "string": {"image": str(path)},
        "bytes": {"image": buffer.getvalue()},
        "data": {"url": f"data:image/png;base64,{text}"},
        "base64": {"base64": text},
        "url": {"image_url": {"url": str(path)}, "type": "image_url"},
        "array": {"image": array},
        "channels": {"image": array.transpose(2, 0, 1).copy()},
        "tensor": {"image": torch.tensor(array.transpose(2, 0, 1).copy())},
    }[kind]
    content = [{"type": "image"} | part, {"type": "text", "text": "what?"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    np.testing.assert_array_equal(inputs["pixel_values"][0].numpy(), processor.image_processor.transform(image))


def test_images_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    picture().save(tmp_path / "a.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(ImageError, match="not a public address"):
            open_image(f"{address}/a.png")
        monkeypatch.setattr("mobillama_v.images.fetch.is_public", lambda address: True)
        assert open_image(f"{address}/a.png").tobytes() == picture().tobytes()
        with pytest.raises(ImageError, match=r"nothing\.png' answered 404"):
            open_image(f"{address}/nothing.png")
        server.shutdown()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such.png", "does not exist"),
        ("data:image/png;base64,!!", "base64"),
        (b"text", "not an image"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), "not an image"),
        (3, "a int is not an image"),
    ],
)
def test_bad_images_are_one_sentence(source: Any, message: str, processor: MobiLlamaVProcessor) -> None:
    with pytest.raises(ImageError, match=message):
        processor(images=source, text="what?")


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "no turns"),
        ([{"role": "user"}], "role and content"),
        ([{"role": "judge", "content": "x"}], "'judge', a role that is unknown"),
        ([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "cannot be used"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "cannot be used"),
        (chat("a", "b")[1:], "no turns"),
    ],
)
def test_bad_conversations_are_refused(conversation: Any, message: str, processor: MobiLlamaVProcessor) -> None:
    with pytest.raises(PromptError, match=message):
        processor.apply_chat_template(conversation, tokenize=True)


def test_what_does_not_go_together_is_refused(processor: MobiLlamaVProcessor) -> None:
    marked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    with pytest.raises(PromptError, match="has 1 images to be filled in, and 0 were given"):
        processor.apply_chat_template(marked, tokenize=True)
    with pytest.raises(PromptError, match="has 0 images to be filled in, and 1 were given"):
        processor(text=processor.apply_chat_template(chat("what?")), images=picture())
    with pytest.raises(PromptError, match="nothing to answer"):
        processor.apply_chat_template(chat("what?", "a cat"), add_generation_prompt=True)
    with pytest.raises(PromptError, match="by its own"):
        processor.apply_chat_template(chat("what?"), "{{ messages }}")
    with pytest.raises(PromptError, match="there is no text"):
        processor(images=picture())
    with pytest.raises(PromptError, match="padding 'shortest'"):
        processor(text="what?", padding="shortest")
    with pytest.raises(PromptError, match="would cut within the images"):
        processor(text="what?", images=picture(), truncation=True, max_length=30)
    with pytest.raises(PromptError, match="other <image> places than its 1 images"):
        processor(text="USER: <image><image> ASSISTANT:", images=picture(), add_special_tokens=False)


def test_too_long_prompts_are_refused_never_cut(processor: MobiLlamaVProcessor) -> None:
    with pytest.raises(PromptError, match="context is 512"):
        processor(text="what is this? " * 300)
    with pytest.raises(PromptError, match="context is 20"):
        processor(text="what?", images=picture(), max_length=20)


def test_folders_that_lack_something(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a config\.json nor a processor_config\.json"):
        MobiLlamaVProcessor.from_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 5000
    config["text_config"]["eos_token_id"] = 4999
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        MobiLlamaVProcessor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    with pytest.raises(CheckpointError, match=r"no token 4999, which config\.json names as eos_token_id"):
        MobiLlamaVProcessor.from_pretrained(tmp_path)
    config["text_config"] |= {"vocab_size": 50, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has \d+ tokens and the decoder 50 embeddings"):
        MobiLlamaVProcessor.from_pretrained(tmp_path)


def test_the_image_processor_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="do_resize"):
        MobiLlamaVImageProcessor(size=32, do_resize=True)
    with pytest.raises(ConfigError, match="size"):
        MobiLlamaVImageProcessor(size=0)
