"""A row of the data: who said what, and which of it is an answer."""

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice, starmap
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.options import Turns
from cherry_vllm.schema import MESSAGE

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
# In a message's extra: its calls of tools, and what OpenAI's format had before them.
CALL_FIELDS = ("tool_calls", "function_call")


class Message(NamedTuple):
    role: str  # SYSTEM, USER, ASSISTANT or TOOL
    content: str
    input: str = ""  # of an instruction with an input of its own, as in Alpaca; else ""
    is_answer: bool = False  # whether its tokens are scored; other messages are context
    extra: str | None = None  # its further fields as JSON, such as tool_calls, for chat templates

    @property
    def calls_tools(self) -> bool:
        """Whether the message calls a tool."""
        return any(f'"{name}"' in (self.extra or "") for name in CALL_FIELDS)

    def as_fields(self, content: str) -> dict[str, Any]:
        """The message as a chat template takes it, with ``content`` for its text."""
        further = json.loads(self.extra) if self.extra else {}
        for call in further.get("tool_calls") or ():
            _open_arguments(call)
        return {"role": self.role, "content": content, **further}


def _open_arguments(call: Any) -> None:
    """Makes a call's arguments an object, which templates expect; OpenAI's format has text."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, str):
        with suppress(ValueError):
            function["arguments"] = json.loads(arguments)


class Conversation(NamedTuple):
    """Messages, in order. An instruction with its output is a conversation of one turn."""

    messages: tuple[Message, ...]
    tools: str | None = None  # descriptions of the tools that may be called, as JSON

    @property
    def answers(self) -> list[int]:
        """The positions of the answers among the messages."""
        return [place for place, message in enumerate(self.messages) if message.is_answer]


# In a frame of schema.ROWS: the position of the last answer among the messages; null without one.
LAST_ANSWER = (
    pl.col("messages")
    .list.eval(pl.element().struct.field("is_answer").arg_true().max())
    .list.first()
)


def last_answer(messages: Sequence[Message]) -> int | None:
    """The position of the last answer; None if there is none."""
    return max((place for place, said in enumerate(messages) if said.is_answer), default=None)


def choose_answers(messages: Sequence[Message], turns: Turns) -> list[Message]:
    """The messages with only the first or the last of the answers, or with all of them."""
    if turns is Turns.all:
        return list(messages)
    answers = [place for place, message in enumerate(messages) if message.is_answer]
    kept = answers[:1] if turns is Turns.first else answers[-1:]
    return [message._replace(is_answer=place in kept) for place, message in enumerate(messages)]


def single_turn(instruction: str, input: str, answer: str) -> Conversation:
    """An Alpaca triple as a conversation."""
    return Conversation(
        (Message(USER, instruction, input), Message(ASSISTANT, answer, "", is_answer=True))
    )


def frame_messages(conversations: Sequence[Sequence[Message] | None]) -> pl.Series:
    """Messages as a column of lists of :data:`schema.MESSAGE`; null where there are none."""
    flat = [(line, *said) for line, messages in enumerate(conversations) for said in messages or ()]
    schema = {"line": pl.Int64, **MESSAGE.to_schema()}
    said = pl.DataFrame(flat, schema=schema, orient="row")
    grouped = said.select("line", messages=pl.struct(MESSAGE.to_schema().keys())).group_by("line")
    lines = pl.DataFrame({"line": range(len(conversations))}, schema={"line": pl.Int64})
    joined = lines.join(grouped.agg("messages"), on="line", how="left", maintain_order="left")
    return joined["messages"]


def open_messages(column: pl.Series) -> list[tuple[Message, ...]]:
    """The messages of each line of a column of :func:`frame_messages`; none where it is null."""
    counts = column.list.len().fill_null(0).to_list()
    held = column.filter(column.list.len() > 0)
    said = starmap(Message, held.explode().struct.unnest().iter_rows())
    return [tuple(islice(said, count)) for count in counts]


def open_conversations(rows: pl.DataFrame) -> list[Conversation]:
    """The conversations of a frame of :data:`schema.ROWS`, in order."""
    both = zip(open_messages(rows["messages"]), rows["tools"], strict=True)
    return [Conversation(messages, tools) for messages, tools in both]


SHOWN = ("instruction", "input", "answer", "request")


def show_conversations(rows: pl.DataFrame) -> pl.DataFrame:
    """A frame of :data:`schema.ROWS` with the texts :data:`SHOWN` to people and judges.

    The answer is the last one. The instruction is all that precedes it: of a single turn the
    instruction itself, of a longer conversation its messages, each after its role. The request is
    the first thing that the user says.
    """
    tools = rows["tools"] if "tools" in rows.columns else [None] * rows.height
    texts = [
        _show(messages, described)
        for messages, described in zip(open_messages(rows["messages"]), tools, strict=True)
    ]
    shown = pl.DataFrame(texts, schema=dict.fromkeys(SHOWN, pl.String), orient="row")
    return rows.drop("messages").hstack(shown)


def _show(messages: Sequence[Message], tools: str | None) -> tuple[str | None, ...]:
    if not messages:
        return (None,) * len(SHOWN)
    last = last_answer(messages)
    before = messages[:last]
    answer = None if last is None else messages[last].content
    request = next((said.content for said in before if said.role == USER), "")
    if len(before) == 1 and not tools:
        return before[0].content, before[0].input, answer, request
    lines = [f"tools: {tools}"] if tools else []
    lines += [f"{said.role}: {_text(said)}" for said in before]
    return "\n\n".join(lines), "", answer, request


def _text(message: Message) -> str:
    """A message's text, its input and its further fields, such as tool calls, included."""
    return "\n\n".join(filter(None, (message.content, message.input, message.extra)))
