"""Requests as clients really write them: taken, clamped, or refused in OpenAI's words; never anything else."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama_v.demo import read_json as reading
from mobillama_v.demo.limits import BusyError, HeldBytes, Limits
from mobillama_v.demo.protocol import AnswerRequest, RequestError, api_error, parse
from mobillama_v.demo.read_json import MAX_ESCAPES, MAX_VALUES, read_json
from mobillama_v.demo.request_bodies import Body, ChatBody, CompletionBody, ResponseBody
from mobillama_v.errors import ImageError, MobiLlamaVError
from mobillama_v.generate import Sampling
from serving import RED, data_url, encoded

PNG = encoded(RED)
TEXT = base64.b64encode(PNG).decode()
HELLO = [{"role": "user", "content": "Hello"}]


def read(kind: type[Body] = ChatBody, *, strict: bool = False, **body: Any) -> AnswerRequest:
    if kind is ChatBody:
        body = {"messages": HELLO} | body
    return parse({"model": "m"} | body, kind, Limits(), strict=strict)


@pytest.mark.parametrize(
    "url",
    [
        data_url(PNG),
        f"data:image/jpg;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:application/octet-stream;base64,{TEXT}",
        f"DATA:image/png;charset=utf-8;BASE64,{TEXT}",
        f"data:image/png;base64,{base64.encodebytes(PNG).decode()}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PNG).decode()}",
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f"data:image/png;base64,{TEXT.rstrip('=')}",
        f"data:image/png,{quote(PNG)}",
        TEXT,
        TEXT.rstrip("="),
    ],
)
def test_pictures_in_every_spelling(url: str) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ):
        said = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
        assert [picture.data for picture in read(messages=said).pictures] == [PNG]
        assert [picture.data for picture in read(ResponseBody, input=said).pictures] == [PNG]


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ({"max_tokens": 4096}, {"max_new_tokens": 1024}),
        ({"max_tokens": -1}, {"max_new_tokens": 1024}),
        ({"max_tokens": 10**400}, {"max_new_tokens": 1024}),
        ({"max_tokens": 7.0, "stream": None, "n": None, "stop": None}, {"max_new_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"temperature": "0.5"}, {"temperature": 0.5}),
        ({"temperature": 5e-324}, {}),
        ({"top_p": 0}, {"top_p": 1e-9}),
        ({"seed": -1}, {}),
        ({"seed": -(2**63)}, {"seed": 2**63}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram": 3}),
        ({"logprobs": True, "top_logprobs": 3}, {"top_log_probs": 3}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
    ],
)
def test_numbers_are_brought_into_range(body: dict[str, Any], changed: dict[str, Any]) -> None:
    assert read(**body).sampling == Sampling(**({"max_new_tokens": 128} | changed))


FIELDS: dict[str, Any] = {
    **{"reasoning_effort": "low", "verbosity": "low", "top_k": 40, "min_p": 0.05, "frequency_penalty": 0.5},
    **{"chat_template_kwargs": {"a": 1}, "num_ctx": 2048, "options": {"a": 1}, "extra_nonsense": 1},
}
QUIET: dict[str, Any] = {
    **{"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True},
    **{"functions": [], "function_call": "none", "tool_choice": "auto", "tools": [], "modalities": ["text"]},
    **{"prediction": None, "audio": None, "cache_prompt": True, "keep_alive": "5m", "presence_penalty": 0.0},
    **{"response_format": {"type": "text"}, "logit_bias": {}, "guided_json": None, "echo": False, "ignore_eos": False},
    **{"chat_template_kwargs": {}, "web_search_options": {}, "prompt_cache_retention": "24h"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_unknown_is_ignored_and_named(name: str) -> None:
    assert read(**{name: FIELDS[name]}).ignored == [name]
    with pytest.raises(RequestError, match=f"Unrecognized request argument supplied: {name}"):
        read(**{name: FIELDS[name]}, strict=True)


@pytest.mark.parametrize("name", QUIET)
def test_what_asks_for_nothing_is_ignored_in_silence(name: str) -> None:
    assert read(**{name: QUIET[name]}).sampling == Sampling(128)
    assert read(**{name: QUIET[name]}).ignored == []


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (ChatBody, {"tools": [{"type": "function"}]}, "tools"),
        (ChatBody, {"functions": [{"name": "f"}]}, "functions"),
        (ChatBody, {"response_format": {"type": "json_object"}}, "response_format"),
        (ChatBody, {"logit_bias": {"5": 1}}, "logit_bias"),
        (ChatBody, {"modalities": ["audio"]}, "modalities"),
        (ResponseBody, {"input": "Hello", "text": {"format": {"type": "json_schema"}}}, "text"),
        (ResponseBody, {"input": "Hello", "previous_response_id": "resp_1"}, "previous_response_id"),
        (CompletionBody, {"prompt": "Hello", "suffix": "!"}, "suffix"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(kind: type[Body], body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=r"is not supported|wants more") as error:
        read(kind, **body)
    assert (error.value.param, error.value.code, error.value.status) == (param, "unsupported_parameter", 400)
    assert read(tools=[{"type": "function"}], tool_choice="none").choices == 1


def test_histories_become_one_form() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    plain = read(messages=[{"role": "system", "content": "B."}, *HELLO]).messages
    for messages in (
        [*HELLO, {"role": "system", "content": "B."}],
        [{"role": "assistant", "content": "Hi!"}, {"role": "developer", "content": "B."}, *HELLO],
        [{"role": "system", "content": "B."}, calls, *HELLO],
    ):
        assert read(messages=messages).messages == plain
    assert read(ResponseBody, input="Hello", instructions="B.").messages == plain
    assert read(ResponseBody, input=[{"type": "message", **HELLO[0]}], instructions="B.").messages == plain
    assert read(CompletionBody, prompt=["Hello"]).messages == read().messages


def test_errors_name_what_was_asked() -> None:
    with pytest.raises(RequestError, match="no turns") as error:
        read(ResponseBody, input=[{"type": "reasoning"}])
    assert error.value.param == "input"
    found = api_error(ImageError("picture 1 is damaged"), "input")
    assert (found.param, found.code, str(found)) == ("input", "invalid_image", "Picture 1 is damaged")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([TEXT, "user", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({name for kind in (ChatBody, CompletionBody, ResponseBody) for name in kind.model_fields} | set(QUIET))


@given(
    kind=st.sampled_from([ChatBody, CompletionBody, ResponseBody]),
    body=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=5),
)
@settings(deadline=None, max_examples=200)
def test_any_json_is_read_or_refused(kind: type[Body], body: dict[str, Any]) -> None:
    whole = {"model": "m", "messages": HELLO, "prompt": "Hello", "input": "Hello"} | body
    try:
        parsed = parse(read_json(bytearray(json.dumps(whole).encode())), kind, Limits())
        assert parsed.messages and 1 <= parsed.sampling.max_new_tokens <= Limits().max_new_tokens
    except MobiLlamaVError as error:
        json.dumps(api_error(error).body, allow_nan=False).encode()


@given(
    value=st.recursive(
        st.text(alphabet='ab"\\/\n\u00e9\u20ac\U0001f600<0>', max_size=90)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=40), inner, max_size=3),
        max_leaves=8,
    ),
    ascii=st.booleans(),
    piece=st.integers(1, 40),
)
@settings(deadline=None, max_examples=300)
def test_json_is_the_same_in_pieces(value: Any, ascii: bool, piece: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_PIECE", piece)
        assert read_json(bytearray(text.encode())) == json.loads(text)
        for broken in (text[:-1], text + '"', f'[{text}, "\\ud83d{"a" * piece}\\ude00"]'):
            if isinstance(value, (int, float)) and broken == text[:-1]:
                continue
            with pytest.raises(RequestError, match=r"not valid JSON|half a character"):
                read_json(bytearray(broken.encode()))


def test_json_is_bounded() -> None:
    for data, message in (
        (b"[" * 100_000, "not valid JSON"),
        (b"[0," + b"0," * MAX_VALUES + b"0]", "more than 200,000 values"),
        (b'["' + rb"\u0061" * (MAX_VALUES + 1) + b'"]', "escaped characters"),
        (b'["\xed\xa0\x80"]', "not valid JSON"),
        (b'{"\\ud800": 1}', "half a character"),
        (b'[{"a": Infinity}]', "Infinity is no number"),
        (b"1" * 5000, "not valid JSON"),
        (b" " * 5_000_000 + b"1", "no string in 4,194,304 bytes"),
        (b'["' + rb"\n" * (MAX_ESCAPES + 1) + b'"]', "escaped characters"),
        (b'"' * 4_000_000, "values"),
        (b'["' + b"a" * 1_000_000, "string at byte 1 has no end"),
        (b'["' + b"a" * 1_000_000 + b'\n"]', "not valid JSON"),
        (b'["' + b"a" * 1_000_000 + b'\xff"]', "not valid JSON"),
    ):
        with pytest.raises(RequestError, match=message):
            read_json(bytearray(data))
    assert read_json(bytearray(b'\xef\xbb\xbf["\\ud83d\\ude00"]')) == ["😀"]


def test_one_owner_holds_half() -> None:
    held = HeldBytes(100)
    held.take("a", 50)
    with pytest.raises(BusyError, match="your own requests") as error:
        held.take("a", 1)
    assert error.value.own
    held.take("b", 40)
    with pytest.raises(BusyError, match="being answered") as error:
        held.take("c", 11)
    assert not error.value.own and held.total == 90
    held.give_back("a", 50)
    held.take("c", 11)
    assert held.total == 51
