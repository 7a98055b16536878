"""From tokens, as they come, to the text of a continuation: whole characters, and no further than a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.inference.generate import NewToken


class FinishReason(Enum):
    """Why a continuation went no further."""

    model = "model"  # it ended the document
    stop_string = "stop_string"
    length = "length"  # max_new_tokens had come


@dataclass(frozen=True)
class Completion:
    """What a model wrote behind a prompt."""

    text: str  # without the stop string and what stands behind it
    tokens: tuple[int, ...]  # all that were written, those of the stop string too; not the one that ends a document
    log_probabilities: tuple[float, ...]  # nats, of each token, before temperature and whatever else steers the choice
    finish_reason: FinishReason


class StopStrings:
    """Strings before which a text ends."""

    def __init__(self, strings: str | Sequence[str]) -> None:
        """Raises ConfigError for an empty string, which every text would end before."""
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        if "" in self.strings:
            raise ConfigError(
                "stop holds an empty string, before which every text ends. Leave it out, or try stop=['.']."
            )

    def first(self, text: str) -> int | None:
        """Return where the first of the strings begins in a text; None where it has none."""
        return min((place for string in self.strings if (place := text.find(string)) >= 0), default=None)

    def certain(self, text: str) -> int:
        """Return how many characters of a text without a stop string cannot belong to one, whatever comes next."""
        longest = max((len(string) for string in self.strings), default=0)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(string.startswith(text[start:]) for string in self.strings):
                return start
        return len(text)


class GenerationState:
    """The continuation of one prompt, growing token by token. A character may take several tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: StopStrings) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.finish_reason: FinishReason | None = None
        self.new: list[NewToken] = []
        self._before = list(prompt[-1:])  # what the pending tokens follow
        self._pending: list[int] = []  # tokens that are no whole characters yet
        self._held = ""  # characters that may be the beginning of a stop string
        self._text: list[str] = []

    def add(self, token: NewToken | None) -> str:
        """Return the text that has become certain with a token; None is the model's end."""
        if token is None:
            return self.end(FinishReason.model)
        self.new.append(token)
        self._pending.append(token.token)
        text = self.tokenizer.decode_after(self._before, self._pending)
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._pending = self._pending[-1:], []
        self._held += text
        place = self.stop.first(self._held)
        if place is None:
            return self._emit(self.stop.certain(self._held))
        self.finish_reason = FinishReason.stop_string
        return self._emit(place)

    def end(self, finish_reason: FinishReason) -> str:
        """Return the rest of the text, to which nothing will be added; nothing where it has ended before."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = finish_reason
        self._held += self.tokenizer.decode_after(self._before, self._pending) if self._pending else ""
        place = self.stop.first(self._held)
        if place is not None:
            self.finish_reason = FinishReason.stop_string
        return self._emit(len(self._held) if place is None else place)

    def completion(self) -> Completion:
        """Return what has been written; the writing must have ended."""
        assert self.finish_reason is not None
        tokens = tuple(each.token for each in self.new)
        return Completion(
            "".join(self._text), tokens, tuple(each.log_probability for each in self.new), self.finish_reason
        )

    def _emit(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._text.append(text)
        return text
