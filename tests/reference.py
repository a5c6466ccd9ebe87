"""IFD by the book: one row, one sequence, one token at a time.

Slow on purpose and sharing nothing with the package, so that a test can hold the two together.
"""

from __future__ import annotations

from typing import Any

import torch

ALPACA_PLAIN = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_PAIRED = (
    "Below is an instruction that describes a task, "
    "paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
VICUNA_OPENING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def text_prompt(template: str, instruction: str, input: str) -> tuple[str, str]:
    """The prompt and the response marker that ends it."""
    if template == "alpaca":
        opening = ALPACA_PAIRED if input else ALPACA_PLAIN
        extra = f"\n\n### Input:\n{input}" if input else ""
        body = f"### Instruction:\n{instruction}{extra}"
        return f"{opening}\n\n{body}\n\n### Response:", "### Response:"
    if template == "wizardlm":
        question = f"{instruction}\nInput:{input}" if input else instruction
        return f"{question}\n\n### Response:", "### Response:"
    if template == "vicuna":
        question = f"{instruction}\nInput:\n{input}" if input else instruction
        return f"{VICUNA_OPENING} USER: {question} ASSISTANT:", "ASSISTANT:"
    raise ValueError(f"no such template: {template}")


def chat_prompt(tokenizer: Any, instruction: str, input: str) -> tuple[str, str]:
    """The rendered prompt and its generation prompt, which serves as the marker."""
    content = f"{instruction}\n\n{input}" if input else instruction
    turns = [{"role": "user", "content": content}]
    closed = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if not prompt.startswith(closed) or prompt == closed:
        raise ValueError("the chat template has no generation prompt to use as a marker")
    marker = prompt[len(closed) :]
    # The direct text opens the way the conditioned one does, or the two are not comparable.
    bos = tokenizer.bos_token
    if bos and prompt.startswith(bos) and not marker.startswith(bos):
        marker = bos + marker
    return prompt, marker


def encode(tokenizer: Any, text: str, template: str) -> list[int]:
    """Token ids of a whole text: BOS as the tokenizer has it, no EOS behind."""
    bare = list(tokenizer.encode(text, add_special_tokens=False))
    if template == "chat":  # the rendered text already spells its special tokens out
        return bare
    ids = list(tokenizer.encode(text))
    # Only an EOS the tokenizer put there goes: one that the text itself ends in is content.
    appended = ids[len(ids) - len(bare) :] != bare
    if appended and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def mean_loss(model: Any, ids: list[int], start: int) -> float:
    """Mean negative log-likelihood of ids[start:], each given everything before it."""
    model.eval()  # dropout would make the score random
    with torch.no_grad():
        logits = model(torch.tensor([ids], device=model.device)).logits[0].float()
    total = 0.0  # a Python float, hence a float64 sum
    for i in range(start, len(ids)):
        total -= torch.log_softmax(logits[i - 1], dim=-1)[ids[i]].item()
    return total / (len(ids) - start)


def reference_scores(  # noqa: PLR0917 - a row is called the way it reads
    model: Any,
    tokenizer: Any,
    template: str,
    instruction: str,
    input: str,
    answer: str,
    max_length: int,
) -> dict[str, Any] | str:
    """The scores of one row, or the reason why it has none."""
    if answer is None or not answer.strip():
        return "empty_answer"
    if template == "chat":
        prompt, marker = chat_prompt(tokenizer, instruction, input)
    else:
        prompt, marker = text_prompt(template, instruction, input)
    n_prompt = len(encode(tokenizer, prompt, template))
    n_marker = len(encode(tokenizer, marker, template))
    if n_prompt >= max_length:
        return "prompt_too_long"
    # Each text is encoded whole: pieces encoded apart and joined give other ids.
    whole = encode(tokenizer, prompt + answer, template)
    direct_whole = encode(tokenizer, marker + answer, template)
    # Both cuts leave room for the same number of answer tokens.
    ids = whole[:max_length]
    direct_ids = direct_whole[: max_length - n_prompt + n_marker]
    if len(ids) <= n_prompt or len(direct_ids) <= n_marker:
        return "empty_answer"

    conditioned = mean_loss(model, ids, n_prompt)
    direct = mean_loss(model, direct_ids, n_marker)
    return {
        "num_answer_tokens": len(ids) - n_prompt,
        "conditioned_score": conditioned,
        "direct_score": direct,
        "ifd": conditioned / direct,
        "truncated": len(ids) < len(whole) or len(direct_ids) < len(direct_whole),
    }
