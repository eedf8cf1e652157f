"""The processor: one template, slots by mask, padding on the left, and files."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import SLOTS, answer, chat, expected, picture

from mobillama_v import MobiLlamaVProcessor, prompt
from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.errors import CheckpointError, ConfigError, ImageError, PromptError
from mobillama_v.hf.image_processing import MobiLlamaVImageProcessor, open_image
from mobillama_v.images import ImageTransform
from mobillama_v.prompt import Slot, assistant, user
from tiny import IMAGE_SIZE


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
    assert (tmp_path / "chat_template.jinja").read_text() == TEMPLATES["v1"].jinja
    again = MobiLlamaVProcessor.from_pretrained(tmp_path)
    assert again.image_processor.transform == ImageTransform(IMAGE_SIZE, "crop", (0.5,) * 3, (0.25,) * 3)
    assert (again.template, again.tokens_per_image, again.context_length) == ("v1", SLOTS, 512)
    conversation = chat((picture(), "what is </s> this?"), "naïve", "and?")
    a, b = (p.apply_chat_template(conversation, tokenize=True).tolist() for p in (processor, again))
    assert a == b


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
