"""Templates: the prompt to the letter, and the marker that takes its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from cherry_vllm.conversation import (
    ASSISTANT,
    SYSTEM,
    TOOL,
    USER,
    Conversation,
    Message,
    single_turn,
)
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import (
    PromptTemplate,
    RefusedError,
    TextTemplate,
    build_template,
    render_example,
)
from tests.prompts.conftest import prompt_named

ALPACA, CHAT = prompt_named("alpaca"), prompt_named("chat")
ChatTokenizer = Callable[[str], Any]


class Rendered(NamedTuple):
    text: str
    marker: str


def render(template: PromptTemplate, instruction: str, input: str = "") -> Rendered:
    """What precedes the answer of a single turn in both passes."""
    return Rendered(template.render(single_turn(instruction, input, "Hi."), 1), template.marker)


def template_of(tokenizer: Any, name: str) -> PromptTemplate:
    return build_template(tokenizer, prompt_named(name))


def chat(tokenizer: Any, prompt: Prompt = CHAT) -> Rendered:
    return render(build_template(tokenizer, prompt), "Say hi.")


def test_alpaca_prompt_is_the_papers_to_the_letter() -> None:
    prompt = render(template_of(None, "alpaca"), "Do {this}", "with }that{")
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
    prompt = render(build_template(tokenizer, settings), "Say hi.", input)
    assert prompt.marker.endswith(prefix)
    assert prompt.marker != prefix
    assert prompt.text.endswith(prompt.marker)
    assert "Say hi." in prompt.text
    assert input in prompt.text


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
@pytest.mark.parametrize("blank", [" ", "\n\n", "\t \u3000"])
def test_an_input_of_blanks_alone_counts_as_none(tokenizer: Any, name: str, blank: str) -> None:
    template = template_of(tokenizer, name)
    assert render(template, "Say hi.", blank) == render(template, "Say hi.")


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
        TextTemplate(replace(ALPACA, without_input=without_input, with_input=with_input))


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
    "change",
    [
        {"template_kwargs": {"a": 1}},
        {"date": "2026-01-31"},
        {"system": "Be kind."},  # a template without {system} has no place for it
        {"marker": None},
    ],
)
def test_a_text_template_refuses_what_it_has_no_place_for(change: dict[str, Any]) -> None:
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
    begun = replace(begun, rendered=render_example(build_template(tokenizer, begun)))
    assert chat(tokenizer, begun) == chat(tokenizer, replace(begun, rendered=()))
    with pytest.raises(UserError, match="no longer renders"):
        chat(tokenizer, replace(begun, date="2026-02-01"))


# --- conversations -----------------------------------------------------------------------------

ANSWER = Message(ASSISTANT, "A cherry.", "", is_answer=True)
TWO_TURNS = Conversation(
    (
        Message(SYSTEM, "Be brief."),
        Message(USER, "Name a fruit."),
        ANSWER,
        Message(USER, "And a vegetable?"),
        Message(ASSISTANT, "A carrot.", "", is_answer=True),
    )
)


def test_vicuna_renders_later_turns_and_the_rows_own_system_message(tokenizer: Any) -> None:
    template = template_of(tokenizer, "vicuna")
    end = tokenizer.eos_token
    assert template.render(TWO_TURNS, 2) == "Be brief. USER: Name a fruit. ASSISTANT:"
    assert template.render(TWO_TURNS, 4) == (
        f"Be brief. USER: Name a fruit. ASSISTANT:A cherry.{end}USER: And a vegetable? ASSISTANT:"
    )


def test_a_chat_template_gets_all_messages_before_an_answer(chat_tokenizer: ChatTokenizer) -> None:
    template = build_template(chat_tokenizer("chatml"), replace(CHAT, system="Be kind."))
    assert template.render(TWO_TURNS, 4) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a fruit.<|im_end|>\n"
        "<|im_start|>assistant\nA cherry.<|im_end|>\n<|im_start|>user\nAnd a vegetable?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    bare = Conversation(TWO_TURNS.messages[1:])
    assert template.render(bare, 1).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_a_chat_template_gets_tools_and_calls(chat_tokenizer: ChatTokenizer) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool.name }}\n{% endfor %}"
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }}({{ call.function.arguments.city }})\n{% endfor %}{% endfor %}"
    ) + tokenizer.chat_template
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}
    call = json.dumps({"tool_calls": [{"function": function}]})
    messages = (
        Message(USER, "Weather?"),
        Message(ASSISTANT, "", extra=call),
        Message(TOOL, "12 degrees"),
        ANSWER,
    )
    rendered = build_template(tokenizer, CHAT).render(
        Conversation(messages, '[{"name": "weather"}]'), 3
    )
    assert rendered.startswith("weather\nweather(Bern)\n<|im_start|>user\nWeather?")


@pytest.mark.parametrize(
    ("name", "messages", "tools"),
    [
        ("alpaca", TWO_TURNS.messages[1:], None),
        ("wizardlm", TWO_TURNS.messages[1:], None),
        ("alpaca", TWO_TURNS.messages[:3], None),
        ("vicuna", (Message(USER, "a"), Message(USER, "b"), ANSWER), None),
        ("vicuna", (Message(USER, "a"), Message(TOOL, "b"), ANSWER), None),
        ("vicuna", (Message(SYSTEM, "a"), ANSWER), None),
        ("vicuna", TWO_TURNS.messages[1:3], "[{}]"),
    ],
)
def test_a_text_template_refuses_other_conversations(
    tokenizer: Any, name: str, messages: tuple[Message, ...], tools: str | None
) -> None:
    with pytest.raises(RefusedError):
        template_of(tokenizer, name).render(Conversation(messages, tools), len(messages) - 1)


def test_what_a_chat_template_raises_refuses_the_conversation(
    chat_tokenizer: ChatTokenizer,
) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    template = build_template(tokenizer, CHAT)
    assert template.render(Conversation(TWO_TURNS.messages[1:]), 3)
    with pytest.raises(RefusedError, match="no system role"):
        template.render(TWO_TURNS, 4)
