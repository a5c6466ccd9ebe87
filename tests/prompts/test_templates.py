"""Templates: the prompt to the letter, and the marker that takes its place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import (
    QUESTION,
    PromptTemplate,
    Rendered,
    TextTemplate,
    build_template,
)
from tests.prompts.conftest import prompt_named

CHAT = prompt_named("chat")
ChatTokenizer = Callable[[str], Any]


def template_of(tokenizer: Any, name: str) -> PromptTemplate:
    return build_template(tokenizer, prompt_named(name))


def chat(tokenizer: Any, prompt: Prompt = CHAT) -> Rendered:
    return build_template(tokenizer, prompt).render("Say hi.", "")


def test_alpaca_prompt_is_the_papers_to_the_letter() -> None:
    prompt = template_of(None, "alpaca").render("Do {this}", "with }that{")
    assert prompt.text == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo {this}\n\n### Input:\nwith }that{\n\n### Response:"
    )
    assert prompt.marker == "### Response:"


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
@pytest.mark.parametrize("input", ["", "some input"])
@pytest.mark.parametrize("prefix", ["", " So:"])
def test_prompts_end_in_their_marker(tokenizer: Any, name: str, input: str, prefix: str) -> None:
    settings = replace(prompt_named(name), answer_prefix=prefix)
    prompt = build_template(tokenizer, settings).render("Say hi.", input)
    assert prompt.marker.endswith(prefix)
    assert prompt.marker != prefix
    assert prompt.text.endswith(prompt.marker)
    assert "Say hi." in prompt.text
    assert input in prompt.text


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
@pytest.mark.parametrize("blank", [" ", "\n\n", "\t \u3000"])
def test_an_input_of_blanks_alone_counts_as_none(tokenizer: Any, name: str, blank: str) -> None:
    template = template_of(tokenizer, name)
    assert template.render("Say hi.", blank) == template.render("Say hi.", "")


def test_chat_direct_pass_begins_with_bos_if_the_prompt_does(chat_tokenizer: ChatTokenizer) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.bos_token = "<|im_start|>"  # SmolLM2's, which opens each of its messages
    assert chat(tokenizer).marker == "<|im_start|>assistant\n"
    tokenizer.bos_token = "<s>"
    assert chat(tokenizer).marker == "<|im_start|>assistant\n"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert chat(tokenizer).marker == "<s><|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("without_input", "with_input", "fault"),
    [
        ("no field", "{instruction}{input}", "without_input"),
        ("{instruction}", "{instruction}", "with_input"),
        ("{instruction} {", "{instruction}{input}", "without_input"),
        ("{instruction.__class__}", "{instruction}{input}", "without_input"),
    ],
)
def test_templates_are_checked(without_input: str, with_input: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        TextTemplate(without_input=without_input, with_input=with_input, marker="x")


def test_a_tokenizer_without_chat_template_is_refused(chat_tokenizer: ChatTokenizer) -> None:
    bare = chat_tokenizer("chatml")
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        chat(bare)


# --- chat templates that are known to cause trouble ------------------------------------------


def test_a_generation_prompt_is_found_where_the_closed_text_ends_in_eos(
    chat_tokenizer: ChatTokenizer,
) -> None:
    tokenizer = chat_tokenizer("phi")
    assert chat(tokenizer) == Rendered(
        "<|user|>\nSay hi.<|end|>\n<|assistant|>\n", "<|assistant|>\n"
    )
    assert chat(tokenizer) == chat(tokenizer, replace(CHAT, marker="<|assistant|>\n"))


def test_a_template_without_generation_prompt_needs_a_marker(
    chat_tokenizer: ChatTokenizer,
) -> None:
    tokenizer = chat_tokenizer("inst")
    with pytest.raises(UserError, match=r"no generation prompt.*set prompt\.marker"):
        chat(tokenizer)
    tokenizer.chat_template = (
        "{{ messages[0].content }}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    with pytest.raises(UserError, match="no generation prompt"):
        chat(tokenizer)
    assert chat(chat_tokenizer("inst"), replace(CHAT, marker="[/INST]")).marker == "[/INST]"


def test_template_arguments_reach_the_template(chat_tokenizer: ChatTokenizer) -> None:
    tokenizer = chat_tokenizer("think")
    assert chat(tokenizer).text.endswith("<|im_start|>assistant\n<think>\n")
    off = replace(CHAT, template_kwargs={"enable_thinking": False})
    marker = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert chat(tokenizer, off).marker == marker
    assert chat(tokenizer, off).text.endswith(marker)


@pytest.mark.parametrize("key", ["tokenize", "add_generation_prompt", "strftime_now", "messages"])
def test_template_arguments_that_are_ours_are_refused(
    chat_tokenizer: ChatTokenizer, key: str
) -> None:
    with pytest.raises(UserError, match=rf"prompt\.template_kwargs\.{key}: .*leave it out"):
        chat(chat_tokenizer("think"), replace(CHAT, template_kwargs={key: True}))


@pytest.mark.parametrize(
    "change", [{"template_kwargs": {"a": 1}}, {"date": "2026-01-31"}, {"system": "Be kind."}]
)
def test_a_text_template_refuses_what_only_chat_templates_take(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="prompt"):
        build_template(None, replace(prompt_named("alpaca"), **change))


def test_an_answer_prefix_stands_before_the_answer_in_both_passes(
    chat_tokenizer: ChatTokenizer,
) -> None:
    prefix = "<|channel|>final<|message|>"
    prompt = chat(chat_tokenizer("channel"), replace(CHAT, answer_prefix=prefix))
    assert prompt == Rendered(
        f"<|start|>user<|message|>Say hi.<|end|><|start|>assistant{prefix}",
        f"<|start|>assistant{prefix}",
    )


def test_a_template_takes_the_given_day_for_today(chat_tokenizer: ChatTokenizer) -> None:
    tokenizer = chat_tokenizer("dated")
    assert "Today is 31 Jan 2026" in chat(tokenizer, replace(CHAT, date="2026-01-31")).text
    with pytest.raises(UserError, match=r"prompt\.date=tomorrow: give a day"):
        chat(tokenizer, replace(CHAT, date="tomorrow"))


def test_a_template_that_renders_otherwise_than_when_the_run_began_is_refused(
    chat_tokenizer: ChatTokenizer,
) -> None:
    tokenizer = chat_tokenizer("dated")
    begun = replace(CHAT, date="2026-01-31")
    begun = replace(begun, rendered=tuple(build_template(tokenizer, begun).render(QUESTION, "")))
    assert chat(tokenizer, begun) == chat(tokenizer, replace(begun, rendered=()))
    with pytest.raises(UserError, match="no longer renders"):
        chat(tokenizer, replace(begun, date="2026-02-01"))
