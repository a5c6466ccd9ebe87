import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.snapshot import settle_prompt
from tests.conftest import TOKENIZER

SPECIAL = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
SPECIAL += ["<|start|>", "<|channel|>", "<|message|>"]

TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWERED = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
CHAT_TEMPLATES = {
    "chatml": CHATML,
    # writes EOS where no answer is asked for, as Phi-3's does
    "phi": TURNS + ANSWERED.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}"),
    # opens a thought unless told not to, as Qwen3.5's does
    "think": CHATML.replace(
        "assistant\n{% endif %}",
        "assistant\n<think>\n{% if enable_thinking is false %}\n\n</think>\n\n{% endif %}"
        "{% endif %}",
    ),
    # an answer follows a channel's header, as in gpt-oss
    "channel": (
        "{% for m in messages %}<|start|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
    # today's date before the first turn, as in Llama 3.2's
    "dated": "<|system|>\nToday is {{ strftime_now('%d %b %Y') }}<|end|>\n" + TURNS + ANSWERED,
    # no generation prompt: an answer follows the user's turn, as in Llama 2's
    "inst": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}


@cache
def prompt_named(name: str) -> Prompt:
    """The settings of ``conf/prompt/NAME.yaml``."""
    return prompt_of(compose(f"prompt={name}"))


def settle(folder: Path, **changes: Any) -> Prompt:
    """The chat prompt with these changes, as a run begins."""
    prompt = replace(prompt_named("chat"), **changes)
    return settle_prompt(folder, prompt, trust_remote_code=False)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The committed tokenizer: ChatML, 2,000 tokens, no BOS before a text."""
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer: Any) -> Callable[[str], Any]:
    """The committed tokenizer with a chat template that is known to cause trouble."""

    def build(name: str) -> Any:
        changed = copy.deepcopy(tokenizer)
        changed.add_special_tokens({"additional_special_tokens": SPECIAL})
        changed.bos_token, changed.eos_token = "<s>", "</s>"
        changed.chat_template = CHAT_TEMPLATES[name]
        return changed

    return build


@pytest.fixture
def saved(chat_tokenizer: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Path]:
    """A folder with such a tokenizer, as of a checkpoint."""

    def save(name: str) -> Path:
        folder = tmp_path / name
        chat_tokenizer(name).save_pretrained(folder)
        return folder

    return save
