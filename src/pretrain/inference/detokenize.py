"""Detokenize completions as their tokens arrive: whole characters only, and not beyond a stop string."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.inference.generate import NewToken


class FinishReason(Enum):
    """Why a completion ended."""

    model = "model"  # the model generated the token that ends a document
    stop_string = "stop_string"
    length = "length"  # max_new_tokens was reached


@dataclass(frozen=True)
class Completion:
    """The text and tokens that a model generated after a prompt."""

    text: str  # up to the stop string
    tokens: tuple[int, ...]  # all new tokens, those of the stop string too, without the one that ends a document
    log_probabilities: tuple[float, ...]  # nats, of each token, before temperature, penalty and limits
    finish_reason: FinishReason


class StopStrings:
    """Strings that end a completion; the text stops before them."""

    def __init__(self, strings: str | Sequence[str]) -> None:
        """Raises ConfigError for what is no text, and for an empty one, which occurs at the start of every text."""
        given = [strings] if isinstance(strings, str) else strings
        if not isinstance(given, Sequence) or not all(isinstance(string, str) for string in given):
            raise ConfigError(
                f"stop={strings!r} is neither a text nor a list of texts. Leave it out, or try stop=['.']."
            )
        self.strings = tuple(given)
        if "" in self.strings:
            raise ConfigError(
                "stop holds an empty string, which occurs at the start of every text. Leave it out, or try stop=['.']."
            )

    def find(self, text: str) -> int | None:
        """Return the index of the first stop string in a text, None without one."""
        return min((index for string in self.strings if (index := text.find(string)) >= 0), default=None)

    def safe_length(self, text: str) -> int:
        """Return the number of characters that cannot belong to a stop string, whatever text follows."""
        longest = max((len(string) for string in self.strings), default=0)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(string.startswith(text[start:]) for string in self.strings):
                return start
        return len(text)


class GenerationState:
    """The completion of one prompt, growing token by token. A character may take several tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: StopStrings,
        limit: int | None = None,
        strip: bool = False,
    ) -> None:
        """`limit` is the most new tokens: at it the completion has ended by its length.

        `strip` drops white space before the text, such as a template's new line, which is no stop string then.
        """
        self._strips = strip
        self.tokenizer = tokenizer
        self.stop = stop
        self.limit = limit
        self.finish_reason: FinishReason | None = None
        self.new: list[NewToken] = []
        self._before = list(prompt[-1:])  # the token before the pending ones
        self._pending: list[int] = []  # tokens that are no whole characters yet
        self._buffer = ""  # characters that may begin a stop string
        self._text: list[str] = []

    def add(self, token: NewToken | None) -> str:
        """Add a token, None at the completion's end, and return the text that it completes."""
        if token is None:
            return self.end(FinishReason.length if len(self.new) == self.limit else FinishReason.model)
        self.new.append(token)
        self._pending.append(token.token)
        text = self.tokenizer.decode_after(self._before, self._pending)
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._pending = self._pending[-1:], []
        self._buffer += text
        self._strip()
        index = self.stop.find(self._buffer)
        if index is None:
            return self._emit(self.stop.safe_length(self._buffer))
        self.finish_reason = FinishReason.stop_string
        return self._emit(index)

    def end(self, finish_reason: FinishReason) -> str:
        """End the completion and return the rest of its text, "" if already ended."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = finish_reason
        self._buffer += self.tokenizer.decode_after(self._before, self._pending) if self._pending else ""
        self._strip()
        index = self.stop.find(self._buffer)
        if index is not None:
            self.finish_reason = FinishReason.stop_string
        return self._emit(len(self._buffer) if index is None else index)

    def completion(self) -> Completion:
        """Return the completion, which must have ended."""
        assert self.finish_reason is not None
        tokens, log_probabilities = zip(*self.new, strict=True) if self.new else ((), ())
        return Completion("".join(self._text), tokens, log_probabilities, self.finish_reason)

    def _strip(self) -> None:
        if self._strips:
            self._buffer = self._buffer.lstrip()
            self._strips = not self._buffer

    def _emit(self, count: int) -> str:
        text, self._buffer = self._buffer[:count], self._buffer[count:]
        self._text.append(text)
        return text


def text_pieces(generation: GenerationState, steps: Iterator[list[NewToken | None]]) -> Iterator[str]:
    """Yield the text of one completion as its tokens come, and last what stop strings held back."""
    for step in steps:
        yield generation.add(step[0])
        if generation.finish_reason is not None:
            return
    yield generation.end(FinishReason.length)
