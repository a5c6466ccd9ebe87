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


def before_answer(tokenizer: Any, template: str, turns: list[tuple[str, str]]) -> tuple[str, str]:
    """The text before the answer to the last of the turns (role, text), and the marker."""
    if template == "chat":
        messages = [{"role": role, "content": text} for role, text in turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text, chat_prompt(tokenizer, "Hi.", "")[1]
    opening = VICUNA_OPENING
    if turns[0][0] == "system":
        opening, turns = turns[0][1], turns[1:]
    text = opening
    for role, said in turns:
        if role == "user":
            text += f"{' ' if text == opening else ''}USER: {said} ASSISTANT:"
        else:
            text += said + tokenizer.eos_token
    return text, "ASSISTANT:"


def conversation_scores(
    model: Any, tokenizer: Any, template: str, turns: list[tuple[str, str]], max_length: int
) -> dict[str, Any] | str:
    """The scores of a conversation, one turn after the other, or the reason why it has none."""
    sums: list[tuple[int, float, int, float]] = []
    truncated = False
    for place, (role, answer) in enumerate(turns):
        if role != "assistant":
            continue
        prompt, marker = before_answer(tokenizer, template, turns[:place])
        start, marked = (len(encode(tokenizer, text, template)) for text in (prompt, marker))
        ids = encode(tokenizer, prompt + answer, template)
        direct = encode(tokenizer, marker + answer, template)
        truncated |= len(ids) > max_length
        if start >= max_length:
            continue
        ids, direct = ids[:max_length], direct[: max_length - start + marked]
        if len(ids) > start and len(direct) > marked:
            counts = len(ids) - start, len(direct) - marked
            losses = mean_loss(model, ids, start), mean_loss(model, direct, marked)
            sums.append((counts[0], counts[0] * losses[0], counts[1], counts[1] * losses[1]))
    if not sums:
        return "prompt_too_long"
    num_tokens, given, num_direct, alone = (sum(column) for column in zip(*sums, strict=True))
    return {
        "num_turns": len(sums),
        "num_answer_tokens": num_tokens,
        "conditioned_score": given / num_tokens,
        "direct_score": alone / num_direct,
        "ifd": (given / num_tokens) / (alone / num_direct),
        "turn_ifd": [(one[1] / one[0]) / (one[3] / one[2]) for one in sums],
        "truncated": truncated,
    }
