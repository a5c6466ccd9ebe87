"""An engine's failure is told by its cause, in one line."""

import pickle
from collections.abc import Callable

import pytest

from cherry_vllm.workers.failures import EngineError, blame_engine


class ValidationError(ValueError):
    """As pydantic raises it: the message ends in a parameter list and a URL."""

    def __str__(self) -> str:
        return (
            "1 validation error for ModelConfig\n"
            "  Value error, The checkpoint has model type `x`, which is not known."
            " [type=value_error, input_value=ArgsKwargs((), {'model': 'm'})]\n"
            "    For further information visit https://errors.pydantic.dev/2.12/v/value_error"
        )

    def errors(self) -> list[dict[str, str]]:
        return [{"msg": "Value error, The checkpoint has model type `x`, which is not known."}]


def plain() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")


def raised_from() -> None:
    try:
        raise ModuleNotFoundError("No module named 'flash_attn'")
    except ModuleNotFoundError as error:
        raise RuntimeError("Failed to import the model because of the following error") from error


def raised_while_another_was_handled() -> None:
    try:
        raise LookupError("no such name in the table")
    except LookupError:
        raise ValueError("Unrecognized model in /models/x")  # noqa: B904


def says_nothing_itself() -> None:
    try:
        raise ValueError("No available memory for the cache blocks")
    except ValueError:
        raise RuntimeError("Engine core initialization failed. See root cause above.")  # noqa: B904


def invalid() -> None:
    raise ValidationError


def url_inside() -> None:
    try:
        raise OSError("404 Client Error for url: https://huggingface.co/x")
    except OSError as error:
        raise OSError("x does not have a file named config.json") from error


def silent() -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("fail", "summary"),
    [
        (plain, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        (raised_from, "ModuleNotFoundError: No module named 'flash_attn'"),
        (raised_while_another_was_handled, "ValueError: Unrecognized model in /models/x"),
        (says_nothing_itself, "ValueError: No available memory for the cache blocks"),
        (invalid, "ValidationError: The checkpoint has model type `x`, which is not known."),
        (url_inside, "OSError: x does not have a file named config.json"),
        (silent, "AssertionError"),
    ],
)
def test_the_summary_names_the_cause_and_neither_url_nor_parameters(
    fail: Callable[[], None], summary: str
) -> None:
    blamed = pickle.loads(pickle.dumps(blame(fail)))  # noqa: S301 - as a child sends it
    assert blamed.summary == f"failed: {summary}"
    assert "Traceback" in str(blamed)


@pytest.mark.parametrize("error", [TypeError, AttributeError, NotImplementedError, ImportError])
def test_an_error_that_every_row_meets_is_told_apart(error: type[Exception]) -> None:
    def fail() -> None:
        raise error("got an unexpected keyword argument 'logits_to_keep'")

    assert pickle.loads(pickle.dumps(blame(fail))).meets_every_row  # noqa: S301


@pytest.mark.parametrize(
    ("message", "is_unsupported"),
    [
        ("Unsupported CPU attention configuration: head_dim=16", True),
        ("FP8 is not supported on this device", True),
        ("CUDA out of memory", False),
    ],
)
def test_a_model_or_machine_that_does_not_fit_is_told_apart(
    message: str, *, is_unsupported: bool
) -> None:
    def fail() -> None:
        raise RuntimeError(message)

    assert pickle.loads(pickle.dumps(blame(fail))).is_unsupported is is_unsupported  # noqa: S301


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, ValueError, OSError])
def test_an_error_that_may_be_one_rows_is_not(error: type[Exception]) -> None:
    def fail() -> None:
        raise error("out of memory")

    assert not blame(fail).meets_every_row


def blame(fail: Callable[[], None]) -> EngineError:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        fail()
    assert isinstance(raised.value, Exception)
    return blame_engine(raised.value)
