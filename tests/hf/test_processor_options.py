"""The processor's standard options, prompts that are in the template's form already, and TRL's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mobillama_v import MobiLlamaVProcessor
from tiny import save_nano_like

RED = Image.new("RGB", (40, 30), (200, 40, 40))
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]},
    {"role": "user", "content": "Sure?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nano_like(tmp_path_factory.mktemp("models") / "nano-like")


@pytest.fixture(scope="module")
def processor(folder: Path) -> MobiLlamaVProcessor:
    return MobiLlamaVProcessor.from_pretrained(folder)


def same(found: Any, wanted: Any) -> bool:
    return set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_prompt_in_the_template_s_form_is_not_wrapped_again(processor: MobiLlamaVProcessor, trusted: bool) -> None:
    wanted = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True, images=[RED])
    plain = "".join(processor.apply_chat_template(CHAT))  # a string without its parts
    assert type(plain) is str
    assert same(processor(text=plain, images=RED, add_special_tokens=not trusted), wanted)


def test_llava_s_strings_are_understood(processor: MobiLlamaVProcessor) -> None:
    question = processor(text="What is it?", images=RED)
    assert same(processor(text="<image>\nWhat is it?", images=RED), question)
    wrapped = processor(text="USER: <image>\nWhat is it? ASSISTANT:", images=RED)["input_ids"][0].tolist()
    begin = [1, *processor.text_tokenizer.encode("USER: ")]  # without the system sentence, and the blank after it
    rest = len(wrapped) - len(begin)
    assert wrapped == [*begin, *question["input_ids"][0].tolist()[-rest:]]
    typed = processor(text="USER: <image>\n</s> x ASSISTANT:", images=RED)
    assert not (typed["input_ids"][0][1:][~typed["image_mask"][0][1:]] < 3).any()


def test_padding_cutting_and_the_mask_of_answers(processor: MobiLlamaVProcessor) -> None:
    texts = ["Hi", "Is it a long question, or is it not?"]
    left, right = (processor(text=texts, padding_side=side) for side in ("left", "right"))
    for name in left:
        lengths = left["attention_mask"].sum(-1)
        for row, n in enumerate(lengths):
            assert torch.equal(left[name][row, -n:], right[name][row, :n])
    assert processor(text=texts, pad_to_multiple_of=32)["input_ids"].shape[1] % 32 == 0
    assert processor(text=texts, padding="max_length", max_length=200)["input_ids"].shape == (2, 200)
    cut = processor(text=texts, truncation=True, max_length=9)
    assert torch.equal(cut["input_ids"][0], processor(text="Hi")["input_ids"][0, :9])
    masked = processor.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, images=[RED], return_assistant_tokens_mask=True
    )
    said = masked["input_ids"][masked["assistant_masks"].bool()].tolist()
    assert said[-1] == 2 and processor.tokenizer.decode(said[:-1]).strip() == "A red square."


@pytest.mark.slow
def test_trl_trains_the_model(folder: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs trl")
    from datasets import Dataset

    from mobillama_v import MobiLlamaVForConditionalGeneration

    rows = [{"images": [RED], "messages": [CHAT[0], CHAT[1]]} for _ in range(4)]
    model = MobiLlamaVForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_length": None}
    options |= {"report_to": [], "use_cpu": True, "bf16": False, "logging_steps": 1, "save_strategy": "no"}
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=str(tmp_path / "run"), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=MobiLlamaVProcessor.from_pretrained(folder),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "final"))
    again = MobiLlamaVForConditionalGeneration.from_pretrained(tmp_path / "final")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert (tmp_path / "final" / "README.md").exists() and (tmp_path / "final" / "chat_template.jinja").exists()
