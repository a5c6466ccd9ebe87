"""The judge's prompts, filled in with two answers in both orders, one answer or an instruction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import AnswerPair
from cherry_vllm.evaluation.parsing import MAX_RATING, MAX_SCORE, RATING, SCORES
from cherry_vllm.options import ResponseFormat
from cherry_vllm.prompts.templates import check_fields

RESERVED = ("messages", "model", "n", "response_format", "stream")
REPLY_FORMAT = "reply_format"
DATA_FIELDS = ("{question}", "{answer}", "{answer_1}", "{answer_2}")

Request = dict[str, Any]
"""The body of a chat completion."""


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """The texts around what the judge is shown."""

    system: str
    user: str  # {reply_format} in it stands for one of the next two
    reply_as_json: str
    reply_as_text: str
    question_with_input: str


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """What a request contains, apart from what the judge is shown."""

    model: str
    parameters: Mapping[str, Any]  # passed to the endpoint unchanged
    response_format: ResponseFormat
    prompt: JudgePrompt


class _Requests:
    """Requests with a system message and a user message, which has {question} and other fields."""

    fields: frozenset[str]

    def __init__(self, settings: RequestSettings, schema: Mapping[str, Any]) -> None:
        """``schema`` describes a reply in JSON.

        Raises:
            UserError: a text has other fields or lacks one, or a parameter is reserved.
        """
        self._prompt, user = settings.prompt, settings.prompt.user
        optional = {REPLY_FORMAT} if f"{{{REPLY_FORMAT}}}" in user else set()
        check_fields("judge.prompt.user", user, {"question", *self.fields, *optional})
        check_fields(
            "judge.prompt.question_with_input",
            settings.prompt.question_with_input,
            {"question", "input"},
        )
        taken = sorted(set(RESERVED) & set(settings.parameters))
        if taken:
            raise UserError(f"judge.parameters.{taken[0]}: set by cherry-vllm itself; remove it")
        self._fixed = {"model": settings.model, **settings.parameters}
        self._reply_format = self._prompt.reply_as_text
        if settings.response_format is ResponseFormat.json_schema:
            form = {"name": "judgement", "strict": True, "schema": schema}
            self._fixed["response_format"] = {"type": "json_schema", "json_schema": form}
            self._reply_format = self._prompt.reply_as_json
        self._markers = _find_markers(user)

    def holds_marker(self, texts: Iterable[str | None]) -> bool:
        """Whether a text that the judge is shown contains a marker of the prompt."""
        shown = " ".join(" ".join(text or "" for text in texts).split()).casefold()
        return any(marker in shown for marker in self._markers)

    def _fill(self, question: str, input: str, **answers: str) -> Request:
        if input:
            question = self._prompt.question_with_input.format(question=question, input=input)
        fields = {"question": question, REPLY_FORMAT: self._reply_format, **answers}
        messages = [
            {"role": "system", "content": self._prompt.system},
            {"role": "user", "content": self._prompt.user.format(**fields)},
        ]
        return {**self._fixed, "messages": messages}


class PairRequests(_Requests):
    """Shows two answers, as {answer_1} and {answer_2}."""

    fields = frozenset({"answer_1", "answer_2"})

    def __init__(self, settings: RequestSettings) -> None:
        super().__init__(settings, _schema(SCORES, MAX_SCORE))

    def build(self, pair: AnswerPair) -> tuple[Request, Request]:
        """The request that shows the first answer as Assistant 1's, and the reversed one."""
        first, second = str(pair.first), str(pair.second)
        return (
            self._fill(pair.question, pair.input, answer_1=first, answer_2=second),
            self._fill(pair.question, pair.input, answer_1=second, answer_2=first),
        )


class RatingRequests(_Requests):
    """Shows one answer, as {answer}."""

    fields = frozenset({"answer"})

    def __init__(self, settings: RequestSettings) -> None:
        super().__init__(settings, _schema(RATING, MAX_RATING))

    def build(self, instruction: str, input: str, answer: str) -> Request:
        return self._fill(instruction, input, answer=answer)


class AspectRequests(_Requests):
    """Shows one instruction, and the meaning of each aspect as {aspects}."""

    fields = frozenset({"aspects"})

    def __init__(self, settings: RequestSettings, aspects: Mapping[str, str]) -> None:
        """``aspects`` maps the names of the aspects to their meanings.

        Raises:
            UserError: there is no aspect, or a text or parameter is wrong as for all requests.
        """
        if not aspects:
            raise UserError("judge.aspects: none given; name at least one, as conf/judge does")
        schema = _schema(list(aspects), MAX_SCORE, is_explained=False)
        super().__init__(settings, schema)
        self.aspects = list(aspects)
        self._listed = "\n".join(f"- {name}: {meaning}" for name, meaning in aspects.items())

    def build(self, instruction: str, input: str) -> Request:
        return self._fill(instruction, input, aspects=self._listed)


def _schema(fields: Sequence[str], top: int, *, is_explained: bool = True) -> dict[str, Any]:
    """A JSON object with a number from 0 to ``top`` per field, and an explanation last.

    So the scores come before the explanation, as in the text form. Judges score in steps of 0.5.
    """
    halves = [half / 2 for half in range(2 * top + 1)]
    numbers = [int(half) if half.is_integer() else half for half in halves]
    properties: dict[str, Any] = {name: {"type": "number", "enum": numbers} for name in fields}
    if is_explained:
        properties["explanation"] = {"type": "string"}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _find_markers(user: str) -> set[str]:
    """The lines before and after the question or an answer, such as "[Question]"."""
    lines = ["", *(" ".join(line.casefold().split()) for line in user.split("\n")), ""]
    places = [place for place, line in enumerate(lines) if line in DATA_FIELDS]
    return {lines[beside] for place in places for beside in (place - 1, place + 1)} - {""}
