"""The judge's prompts, filled in: a pair in either order of its answers, or a single answer."""

from collections.abc import Mapping
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import Pair
from cherry_vllm.prompts.templates import check_fields

RESERVED = ("messages", "model", "n", "stream")

Request = dict[str, Any]
"""The body of a chat completion."""


class _Requests:
    """A system message, and a user message with {question} and fields of its own."""

    fields: frozenset[str]

    def __init__(
        self,
        *,
        model: str,
        parameters: Mapping[str, Any],
        system: str,
        user: str,
        question_with_input: str,
    ) -> None:
        """``parameters`` go to the endpoint as they are.

        Raises:
            UserError: a text has other fields or lacks one, or a parameter is set elsewhere.
        """
        check_fields("judge.prompt.user", user, {"question", *self.fields})
        check_fields("judge.prompt.question_with_input", question_with_input, {"question", "input"})
        taken = sorted(set(RESERVED) & set(parameters))
        if taken:
            raise UserError(f"judge.parameters.{taken[0]}: not a parameter to choose; remove it")
        self._fixed = {"model": model, **parameters}
        self._system = system
        self._user = user
        self._question_with_input = question_with_input

    def _fill(self, question: str, input: str, **answers: str) -> Request:
        if input:
            question = self._question_with_input.format(question=question, input=input)
        messages = [
            {"role": "system", "content": self._system},
            {"role": "user", "content": self._user.format(question=question, **answers)},
        ]
        return {**self._fixed, "messages": messages}


class PairRequests(_Requests):
    """Shows two answers, as {answer_1} and {answer_2}."""

    fields = frozenset({"answer_1", "answer_2"})

    def build(self, pair: Pair) -> tuple[Request, Request]:
        """The request with the first answer as Assistant 1's, and with the second one as it."""
        first, second = str(pair.first), str(pair.second)
        return (
            self._fill(pair.question, pair.input, answer_1=first, answer_2=second),
            self._fill(pair.question, pair.input, answer_1=second, answer_2=first),
        )


class RatingRequests(_Requests):
    """Shows one answer, as {answer}."""

    fields = frozenset({"answer"})

    def build(self, instruction: str, input: str, answer: str) -> Request:
        return self._fill(instruction, input, answer=answer)


class AspectRequests(_Requests):
    """Shows one instruction, and what each aspect means as {aspects}."""

    fields = frozenset({"aspects"})

    def __init__(self, *, aspects: Mapping[str, str], **texts: Any) -> None:
        """``aspects`` holds the aspects' names and what they mean.

        Raises:
            UserError: there is none, or as for all requests.
        """
        super().__init__(**texts)
        if not aspects:
            raise UserError("judge.aspects: none given; name at least one, as conf/judge does")
        self.aspects = list(aspects)
        self._listed = "\n".join(f"- {name}: {meaning}" for name, meaning in aspects.items())

    def build(self, instruction: str, input: str) -> Request:
        return self._fill(instruction, input, aspects=self._listed)
