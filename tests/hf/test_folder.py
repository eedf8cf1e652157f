"""Model folders explain themselves: the chat template says what ours says, and other programs load what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.errors import CheckpointError
from mobillama_v.hf.folder import describe_folder
from mobillama_v.hf.processing import MobiLlamaVProcessor
from tiny import save_nano_like

TEXT = st.text(max_size=9) | st.sampled_from([" a ", "b\n", "\n", "USER: <image> </s>", 'it\'s "so"'])
PARTS = st.lists(TEXT.map(lambda text: {"type": "text", "text": text}) | st.just({"type": "image"}), max_size=5)
SAID = TEXT.filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    system = draw(st.lists(st.builds(lambda text: {"role": "system", "content": text}, TEXT), max_size=1))
    for _ in range(draw(st.integers(1, 3))):
        system += [{"role": "user", "content": draw(TEXT | PARTS)}, {"role": "assistant", "content": draw(SAID)}]
    return system[: len(system) - draw(st.integers(0, 1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_nano_like(tmp_path_factory.mktemp("models") / "bare")
    describe_folder(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> MobiLlamaVProcessor:
    return MobiLlamaVProcessor.from_pretrained(folder)


def refuse(message: str) -> None:
    raise TemplateError(message)


ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers makes it
ENVIRONMENT.globals["raise_exception"] = refuse


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(chat=conversations())
def test_the_jinja_template_says_what_ours_says(template: str, chat: Any, processor: MobiLlamaVProcessor) -> None:
    jinja = ENVIRONMENT.from_string(TEMPLATES[template].jinja)
    processor.template = template
    try:
        ours = processor.apply_chat_template(chat)
    finally:
        processor.template = "v1"
    assert jinja.render(messages=chat, bos_token="<s>", eos_token="</s>") == ours


def test_roles_that_do_not_alternate_are_refused_by_the_template() -> None:
    jinja = ENVIRONMENT.from_string(TEMPLATES["v1"].jinja)
    with pytest.raises(TemplateError, match="alternates"):
        jinja.render(messages=[{"role": "user", "content": "a"}] * 2, bos_token="<s>", eos_token="</s>")


def test_other_programs_find_what_they_need(folder: Path, processor: MobiLlamaVProcessor) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 512)
    chat = [{"role": "user", "content": "Who </s> are you?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == processor.apply_chat_template(chat)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "84 visual tokens" in card and "`mobillama-v-hybrid-lite0`" in card


def test_what_is_there_stays_and_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "README.md").write_text("mine")
    describe_folder(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine" and (tmp_path / "tokenizer_config.json").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"vocab_size": 9000, "eos_token_id": 8999}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks a token"):
        describe_folder(tmp_path)
