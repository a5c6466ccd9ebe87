"""The prompt's settings, as fingerprints know them."""

from dataclasses import asdict, replace

import pytest

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.errors import UserError
from tests.prompts.conftest import prompt_named


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
def test_settings_at_their_defaults_are_named_as_before_the_later_keys(name: str) -> None:
    prompt = prompt_named(name)
    keys = ["without_input", "with_input", "marker", "chat", "system"]
    keys += ["later_turn"] if name == "vicuna" else []
    assert prompt.as_json() == {key: asdict(prompt)[key] for key in keys}


@pytest.mark.parametrize(
    "change",
    [
        {"answer_prefix": "x"},
        {"later_turn": "{instruction}"},
        {"template_kwargs": {"enable_thinking": False}},
        {"date": "2026-01-31"},
        {"rendered": ("text", "marker")},
    ],
)
def test_every_later_key_in_use_is_part_of_the_fingerprint(change: dict[str, object]) -> None:
    prompt = prompt_named("chat")
    assert replace(prompt, **change).as_json() != prompt.as_json()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "override",
    [
        "prompt.template_kwargs={enable_thinking: false}",
        "+prompt.template_kwargs.enable_thinking=false",
    ],
)
def test_template_arguments_are_given_on_the_command_line(override: str) -> None:
    prompt = prompt_of(compose("prompt=chat", override))
    assert prompt.template_kwargs == {"enable_thinking": False}


def test_template_arguments_need_names() -> None:
    with pytest.raises(UserError, match=r"prompt\.template_kwargs=\[1\]: give names"):
        compose("prompt=chat", "prompt.template_kwargs=[1]")
