"""Chat templates: messages to the ids of a conversation, with the tokens that the assistant writes.

A template is a Jinja text as in transformers: of the tokenizer's own folder, or PLAIN. It is rendered in Jinja's
sandbox with a mark for each message's content; contents are encoded as text, so that none can spell special tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, printable

ASSISTANT = "assistant"
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
_OPEN, _CLOSE = "\ue000", "\ue001"  # around the number of a message; both are of Unicode's private use
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

Message = tuple[str, str]  # role and content


@dataclass(frozen=True)
class Conversation:
    """The ids of a conversation: BOS, every turn up to the end of the assistant's last one, EOS."""

    ids: list[int]
    targets: list[tuple[int, int]]  # first token and the one after the last of each turn that the assistant writes


class ChatTemplate:
    """A chat template over the tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a tokenizer whose `chat_template` is none, or no Jinja."""
        if tokenizer.chat_template is None:
            raise ConfigError(
                "the model's tokenizer has no chat template. Fine-tune the model on conversations: experiment=chat."
            )
        self.tokenizer = tokenizer
        self._parsed = _parsed(tokenizer.chat_template)
        self._ids: dict[str, list[int]] = {}

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """Return the ids of messages, of which those of the role assistant and their ends are targets.

        Raises ConfigError for messages that the template refuses, and for a template without an end of a turn.
        """
        ids, targets, start = list[int](), list[tuple[int, int]](), None
        for text, index in self._parts(messages, add_generation_prompt=False):
            after = self._text_ids(text)
            if start is not None:
                self.end_of(after)
                targets.append((start, len(ids) + 1))  # the end of the turn is a target
            ids += after if ids else self._with_bos(after)
            is_target = index is not None and messages[index][0] == ASSISTANT
            start = len(ids) if is_target else None
            ids += [] if index is None else self.tokenizer.encode_following(messages[index][1])
        ids = ids[: targets[-1][1]] if targets else ids
        return Conversation(ids if ids[-1:] == [self.tokenizer.eos_id] else [*ids, self.tokenizer.eos_id], targets)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of messages up to where the assistant writes; ConfigError as `conversation`."""
        ids: list[int] = []
        for text, index in self._parts(messages, add_generation_prompt=True):
            ids += self._text_ids(text) if ids else self._with_bos(self._text_ids(text))
            ids += [] if index is None else self.tokenizer.encode_following(messages[index][1])
        return ids

    @cached_property
    def end_id(self) -> int:
        """Id of the token that ends a turn of the assistant."""
        (_, _), (_, _), (text, _) = self._parts([("user", "a"), (ASSISTANT, "b")], add_generation_prompt=False)
        return self.end_of(self._text_ids(text))

    def end_of(self, after: list[int]) -> int:
        """Return the first id after a turn of the assistant; ConfigError unless it is a special token's."""
        if not after or after[0] not in self.tokenizer.special_ids:
            raise ConfigError(
                "the chat template ends the assistant's turn with text instead of a special token, so that a model "
                "could not end its turn. Write {{ eos_token }} after the assistant's content in the template."
            )
        return after[0]

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[:1] == [self.tokenizer.bos_id] else [self.tokenizer.bos_id, *ids]

    def _text_ids(self, text: str) -> list[int]:
        """Return the ids of a text of the template, in which special tokens count."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer.encode_prompt(text) if text else []
        return self._ids[text]

    def _parts(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[tuple[str, int | None]]:
        """Return the template's texts, each with the message after it; None after the last."""
        from jinja2.exceptions import TemplateError

        marked = [{"role": role, "content": f"{_OPEN}{n}{_CLOSE}"} for n, (role, _) in enumerate(messages)]
        tokens = {"bos_token": self.tokenizer.token(self.tokenizer.bos_id)} | self.tokenizer.roles
        tokens["eos_token"] = self.tokenizer.token(self.tokenizer.eos_id)
        try:
            text = self._parsed.render(messages=marked, add_generation_prompt=add_generation_prompt, **tokens)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"the chat template refuses the messages: {printable(str(error), one_line=True)}."
            ) from None
        pieces = _MARK.split(text)
        order = [int(number) for number in pieces[1::2]]
        if order != list(range(len(messages))):
            raise ConfigError(
                f"the chat template writes the messages {order} of {len(messages)}, and each must come once and in "
                "order. Take another template, or data.chat_template=plain."
            )
        return list(zip(pieces[::2], [*order, None], strict=True))


def _parsed(template: str) -> Any:
    """Return the template, parsed in Jinja's sandbox with the settings, functions and blocks of transformers.

    Only `strftime_now` is left out: data would depend on the day on which they are prepared.
    """
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} around what the assistant writes, which is known from the marks here."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template)
    except (TemplateError, RecursionError) as error:
        raise ConfigError(f"the chat template cannot be read: {printable(str(error), one_line=True)}.") from None


def checked_messages(value: Any) -> list[Message] | str:
    """Return messages of untrusted data, their contents without white space around, or the reason why they are none."""
    if not isinstance(value, list) or not value:
        return "messages are no list"
    messages = list[Message]()
    for each in value:
        role, content = (each.get("role"), each.get("content")) if isinstance(each, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            return "message without role and content"
        if _OPEN in content or _OPEN in role:
            return "message with U+E000"
        messages.append((role, content.strip()))
    return messages
