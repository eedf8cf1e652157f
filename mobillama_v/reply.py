"""What an assistant takes and gives: an encoded image, and a reply, whole or as it comes.

Shapes: P' visual tokens an image, D decoder width, S side of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from mobillama_v.generate import Generation
from mobillama_v.sampling import TokenLogProb

if TYPE_CHECKING:
    from mobillama_v.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class EncodedImage:
    """An image as the decoder sees it, [P',D], and the seconds that decoding and encoding it took.

    The features are an array of numpy's or a tensor of torch's, as the model's :class:`VisionEncoder` gives them.
    ``words`` were read in it where the assistant has a reader, else it is None.
    """

    features: Any
    seconds: float
    words: tuple[str, ...] | None = None


class VisionEncoder(Protocol):
    """What sees for a model: its image tower and projector."""

    device: str
    """Where, by torch's name."""
    tokens_per_image: int
    """Visual tokens P' that one image makes."""

    @property
    def network(self) -> VisionLanguageModel:
        """The model in torch, made when it is first asked for where nothing here computes with it."""
        ...

    def encode_image(self, pixel_values: np.ndarray[Any, Any]) -> Any:
        """Visual tokens [P',D] of an image's pixels [3,S,S], when they have been computed."""
        ...


@dataclass(frozen=True)
class Timings:
    """Seconds: reading and encoding images that were not seen before, the prompt, and all new tokens after the first.

    In a batch ``prefill`` and ``decode`` are those of the whole batch.
    """

    images: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Reply:
    """An answer; ``finish_reason`` is ``stop`` (the model or a stop string ended it) or ``length``.

    ``prompt_tokens`` counts everything before the answer, the visual tokens (``image_tokens``) included; ``new_tokens``
    is the length of the answer without its end token.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    image_tokens: int
    new_tokens: int
    timings: Timings
    log_probs: tuple[TokenLogProb, ...] = ()
    """Of its tokens, where the sampling asked for them."""


class ReplyStream(Iterator[str]):
    """Iterate it for the pieces of text; afterwards (and only then) ``reply`` is the whole answer.

    There is a piece for every token, often an empty one: who stops iterating stops the computation within a token.
    """

    def __init__(self, pieces: Iterator[tuple[str, Reply | None]], generation: Generation) -> None:
        self._pieces, self.generation = pieces, generation
        self._reply: Reply | None = None

    def close(self) -> None:
        """Break the answer off and free what it held; harmless after its end."""
        self.generation.close()

    def __next__(self) -> str:
        piece, reply = next(self._pieces)
        self._reply = reply or self._reply
        return piece

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            RuntimeError: the stream has not ended.
        """
        if self._reply is None:
            raise RuntimeError("the answer has not ended; iterate the stream first")
        return self._reply
