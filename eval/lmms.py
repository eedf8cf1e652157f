"""The adapter to lmms-eval: ``lmms-eval --model mobillama_v --model_args pretrained=nano --tasks …``.

lmms-eval (0.7 and later) finds it by the entry point ``lmms_eval.models`` and asks for :func:`manifest`. The class
itself is made when it is first wanted, since its base is lmms-eval's, which this project does not need otherwise.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mobillama_v.errors import ConfigError, DataError, PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobillama_v.generate import Sampling
    from mobillama_v.prompt import Message
    from mobillama_v.reply import EncodedImage

NAME = "mobillama_v"
_KEPT = 64  # encoded images; tasks ask several questions on one
_LONGEST = 128  # tokens of an answer, where a task does not say
_MARK = "<image>"  # how some tasks mark an image's place in their text


def manifest() -> Any:
    """What lmms-eval must know of the model: its name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.MobiLlamaV")


def __getattr__(name: str) -> Any:
    if name != "MobiLlamaV":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmms_eval.api.model import lmms

    made = type(name, (Answers, lmms), {"__module__": __name__, "__doc__": Answers.__doc__})
    globals()[name] = made
    return made


class Answers:
    """MobiLlama-V as lmms-eval calls it: ``pretrained`` is an embedded model, a folder, or a Hugging Face id."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "nano",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        """Load the model; ``max_batch_size`` is lmms-eval's for a batch size that it finds itself.

        Raises:
            ConfigError: an argument that is not known, or a batch size that is no number.
            MobiLlamaVError: as :func:`mobillama_v.load`.
        """
        super().__init__()
        if unknown:
            raise ConfigError(f"{NAME} takes pretrained, device and batch_size in --model_args, not {sorted(unknown)}.")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ConfigError(f"--batch_size must be a number of 1 or more for {NAME}, not {batch_size!r}.")
        from accelerate import Accelerator  # lmms-eval's own dependency

        from mobillama_v.loading import load

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        place = device or "auto"
        if self._world_size > 1 and place in ("auto", "cuda"):
            place = str(self.accelerator.device)
        self.assistant = load(pretrained, device=place)
        self.batch_size = int(batch_size)
        self._seen: OrderedDict[str, EncodedImage] = OrderedDict()

    @property
    def device(self) -> Any:
        """Where the model runs, as torch says it."""
        import torch

        return torch.device(self.assistant.device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, whose ``args`` are text, settings, and what gives its images.

        A prompt that is longer than the context gets no answer and a warning.

        Raises:
            DataError: a request shows something else than images.
        """
        answers = [""] * len(requests)
        groups: dict[Sampling, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(_sampling(request.args[1]), []).append(i)
        for sampling, members in groups.items():
            members.sort(key=lambda i: -len(requests[i].args[0]))
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                prompts = [self._prompt(requests[i].args[0], *requests[i].args[2:6]) for i in batch]
                for i, text in zip(batch, self._ask(prompts, sampling), strict=True):
                    answers[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args[:2], text)  # type: ignore[attr-defined]
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each request's continuation as the answer, and whether greedy decoding would give it."""
        return [self._likelihood(*request.args) for request in requests]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Tasks in several rounds are not supported.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{NAME} does not take tasks of several rounds; choose others with --tasks.")

    def _ask(self, prompts: list[tuple[list[EncodedImage], list[Message]]], sampling: Sampling) -> list[str]:
        try:
            return [reply.text for reply in self.assistant.ask_batch(prompts, sampling)]
        except PromptError as error:
            if len(prompts) > 1:  # find the one that is too long
                return [text for prompt in prompts for text in self._ask([prompt], sampling)]
            warnings.warn(f"a question is left without an answer: {error}", stacklevel=2)
            return [""]

    def _likelihood(
        self, text: str, continuation: str | Callable[[Any], str], visual: Any, doc: Any, task: str, split: str
    ) -> tuple[float, bool]:
        said = continuation if isinstance(continuation, str) else continuation(self._document(doc, task, split))
        scores = self.assistant.score([self._prompt(text, visual, doc, task, split)], said)
        return float(scores.log_probs[0, :-1].sum()), bool(scores.greedy[0, :-1].all())  # without the end token

    def _document(self, doc: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc]  # type: ignore[attr-defined]

    def _prompt(
        self, text: str, visual: Callable[[Any], Any], doc: Any, task: str, split: str
    ) -> tuple[list[EncodedImage], list[Message]]:
        """Encoded images and the user's turn: images where the text marks them, or else before it."""
        from mobillama_v.prompt import Message, Slot, user

        images = visual(self._document(doc, task, split)) or []
        seen = [self._see(image) for image in images]
        if not seen or text.count(_MARK) != len(seen):
            return seen, [user(text, images=len(seen))]
        content: list[str | Slot] = []
        for part in text.split(_MARK):
            content += [part, Slot.IMAGE] if part else [Slot.IMAGE]
        return seen, [Message("user", tuple(content[:-1]))]

    def _see(self, image: Image) -> EncodedImage:
        from PIL import Image as Pillow

        if not isinstance(image, Pillow.Image):
            kind = type(image).__name__
            raise DataError(f"{NAME} sees images only, and a task shows {kind}; choose others with --tasks.")
        key = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
        if key not in self._seen:
            self._seen[key] = self.assistant.encode_image(image)
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """A task's ``generation_kwargs``; ``num_beams`` and what else is not ours has no effect."""
    from mobillama_v.generate import Sampling

    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(settings.get("temperature") or 0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    return Sampling(
        max_new_tokens=int(settings.get("max_new_tokens") or settings.get("max_gen_toks") or _LONGEST),
        temperature=temperature,
        top_p=float(settings.get("top_p") or 1.0) if temperature else 1.0,
        stop=tuple(dict.fromkeys(stop for stop in stops if stop)),
    )
