"""The rows that are chosen from, and the held-out rows, which share no question with them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import polars as pl

from cherry_vllm.commands.inputs import find_input, layout_of
from cherry_vllm.config import Config, as_list
from cherry_vllm.conversation import Conversation, open_conversations
from cherry_vllm.engines import Span
from cherry_vllm.errors import UserError
from cherry_vllm.options import DedupOn
from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder
from cherry_vllm.selection.duplicates import comparable_text
from cherry_vllm.sources import Columns, read_rows

BATCH_ROWS = 500
SHARED = "with a question of the pool"

Row = tuple[str, Conversation, str | None]  # the record as JSON, what it says, its drop reason


@dataclass
class RowSet:
    """Usable rows of one source, in order, and how many others were passed over."""

    name: str
    records: list[str] = field(default_factory=list)  # as JSON
    questions: set[str] = field(default_factory=set)
    spans: list[list[Span]] = field(default_factory=list)  # of each row, as they are scored
    passed: dict[str, int] = field(default_factory=dict)  # rows passed over, by reason

    @property
    def num_answer_tokens(self) -> list[int]:
        """The answer tokens of each row."""
        return [sum(span.num_answer_tokens for span in spans) for spans in self.spans]

    @property
    def num_tokens(self) -> int:
        """The tokens of all rows, with their prompts."""
        return sum(len(span.token_ids) for spans in self.spans for span in spans)

    def __str__(self) -> str:
        counts = "".join(f"; passed over: {n:,} {reason}" for reason, n in self.passed.items())
        return f"{self.name}: {len(self.records):,} rows{counts}"


class RowReader:
    """Takes the usable rows of ``data.path`` one after the other."""

    def __init__(self, config: Config, builder: SpanBuilder) -> None:
        self._builder = builder
        self._source = ", ".join(as_list(config.data.path or []))
        self._rows = _read(config)

    def take(self, name: str, count: int, option: str, pool: RowSet | None = None) -> RowSet:
        """The next ``count`` usable rows; with a ``pool``, only those with other questions.

        Raises:
            UserError: there are fewer; the message names the ``option`` to lower.
        """
        taken, seen = RowSet(name), pool.questions if pool else set()
        while len(taken.records) < count:
            row = next(self._rows, None)
            if row is None:
                raise UserError(f"{option} {count}: {self._source} has only {taken}; lower it")
            self._add(row, taken, seen)
        return taken

    def _add(self, row: Row, taken: RowSet, seen: set[str]) -> None:
        record, conversation, reason = row
        question = comparable_text(conversation.messages, DedupOn.instruction)
        if reason is None and question in seen:
            reason = SHARED
        if reason is None:
            (built,) = self._builder.build([conversation])
            if isinstance(built, AnswerSpans):
                taken.records.append(record)
                taken.questions.add(question)
                taken.spans.append(built.conditioned)
                return
            reason = built.value
        taken.passed[reason] = taken.passed.get(reason, 0) + 1


def _read(config: Config) -> Iterator[Row]:
    frames = read_rows(
        find_input(config),
        columns=Columns(**asdict(config.data.columns)),
        layout=layout_of(config),
        refusals=config.refusals.phrases,
        turns=config.score.turns,
        max_rows=config.data.max_rows,
        batch_rows=BATCH_ROWS,
    )
    for frame in frames:
        reasons = frame["drop_reason"].cast(pl.String)
        yield from zip(frame["record"], open_conversations(frame), reasons, strict=True)
