"""One style of range check: what is refused, and the words it is refused with."""

import math
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest

from cherry_vllm import config as configuration
from cherry_vllm.checks import FRACTION, LIMIT, Each, Free, Interval, OneOf, Text, number, whole
from cherry_vllm.config import Config, check_config, compose
from cherry_vllm.errors import UserError

SETTINGS = [
    item
    for item in vars(configuration).values()
    if isinstance(item, type) and hasattr(item, "__dataclass_fields__")
    if item.__module__ == configuration.__name__
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda item: item.__name__)
def test_every_number_and_text_of_the_configuration_has_a_limit(settings: Any) -> None:
    """Switches and choices are typed already; for the rest, "any value" needs a reason."""
    for name, kind in get_type_hints(settings).items():
        kinds = set(get_args(kind)) - {type(None)} or {kind}
        if any(isinstance(one, type) and one in SETTINGS for one in kinds):
            continue
        if all(isinstance(one, type) and (one is bool or issubclass(one, Enum)) for one in kinds):
            continue
        limit = settings.__dataclass_fields__[name].metadata.get(LIMIT)
        assert limit, f"{settings.__name__}.{name} has no limit"
        if isinstance(limit, Free):
            assert limit.reason
            assert not kinds & {int, float}, f"{settings.__name__}.{name}: a number needs a range"


@pytest.mark.parametrize(
    ("limit", "value", "advice"),
    [
        (whole(1), 0, "a whole number of at least 1"),
        (whole(1), True, "a whole number of at least 1"),
        (whole(1), 1.5, "a whole number of at least 1"),
        (whole(1), 2**31, "a whole number of at least 1 and up to 2147483647"),
        (whole(0, 9), -1, "a whole number of at least 0 and up to 9"),
        (FRACTION, 0, "a number above 0 and up to 1"),
        (FRACTION, math.nan, "a number above 0 and up to 1"),
        (number(above=0), math.inf, "a number above 0"),
        (number(), math.nan, "a number"),
        (number(at_least=0, below=1), 1, "a number of at least 0 and below 1"),
        (Text("a path"), "", "a path"),
        (Text("a path"), " ", "a path"),
        (Text("a path"), "a\0b", "a path"),
        (OneOf(("a", "b", "c")), "d", "a, b or c"),
        (Interval(0, 100), [75, 25], "two numbers from 0 to 100, the lower first"),
        (Interval(0, 100), [25], "two numbers from 0 to 100, the lower first"),
        (Interval(0, 100), [25, 750], "two numbers from 0 to 100, the lower first"),
        (Each(Text("x"), "texts"), ["x", ""], "texts"),
    ],
)
def test_a_value_outside_its_limit_is_refused_with_what_to_give(
    limit: Any, value: Any, advice: str
) -> None:
    with pytest.raises(UserError) as refused:
        limit.check("some.key", value)
    shown, given = str(refused.value).split(": give ", 1)
    assert shown.startswith("some.key=")
    assert given == advice
    assert "\0" not in shown


def test_a_value_within_its_limit_and_none_pass() -> None:
    for limit, values in {
        whole(1): (1, 2**31 - 1, None),
        FRACTION: (0.05, 1, 1e-300, None),
        Interval(0, 100): ([0, 100], [50, 50.0]),
        Each(Text("a path"), "paths", one_will_do=True): ("a", ["a", "b"]),
    }.items():
        for value in values:
            limit.check("some.key", value)


@pytest.fixture(scope="module")
def kmeans() -> Config:
    return compose()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("executor.num_workers", 0),
        ("executor.num_workers", -1),
        ("executor.timeout_s", math.nan),
        ("executor.load_timeout_s", math.inf),
        ("sample.num_clusters", 0),
        ("sample.n_init", 0),
        ("sample.percentiles", [25.0, 750.0]),
        ("sample.percentiles", [75.0, 25.0]),
        ("engine.tensor_parallel_size", 0),
        ("engine.gpu_memory_utilization", 1.5),
        ("engine.max_num_batched_tokens", 100),
        ("generate.temperature", math.inf),
        ("judge.threshold", math.nan),
        ("max_length", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("run_dir", ""),
        ("select.fraction", 0.0),
        ("select.output", ""),
        ("train.learning_rate", math.nan),
        ("train.lr_scheduler", "magic"),
        ("train.name", "../elsewhere"),
        ("pre_experience.num_epochs", 0),
        ("select.strata", None),
        ("select.join", None),
        ("select.quota", None),
        ("fit.indicators", None),
        ("engine.enforce_eager", None),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_key_before_any_work(
    kmeans: Config, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    *groups, name = key.split(".")
    target: Any = kmeans
    for group in groups:
        target = getattr(target, group)
    monkeypatch.setattr(target, name, value)
    with pytest.raises(UserError, match=rf"^{key}=.*: give "):
        check_config(kmeans)
