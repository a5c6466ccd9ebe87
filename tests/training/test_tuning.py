"""Fine-tuning: the steps, the weights, what is left on disk, and what survives a fault."""

import json
import logging
import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.processes import isolate
from cherry_vllm.training.batches import collate
from cherry_vllm.training.recipe import Recipe
from cherry_vllm.training.rounding import export_bfloat16
from cherry_vllm.training.run import check_trackers
from cherry_vllm.training.tuning import newest_whole_checkpoint
from tests.training.support import (
    LORA,
    MACHINE,
    RECIPE,
    TOKEN_IDS,
    Tuned,
    assert_kept,
    assert_same_weights,
    load_logits,
    load_weights,
    logits_of,
    tune,
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def lora(tiny: Path, examples: list[Span], tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("lora")
    return tune(tiny, examples, folder, replace(LORA, num_epochs=10))


# --- the steps


def test_fine_tuning_is_adamw_on_the_mean_over_the_global_batch(
    tiny: Path, examples: list[Span], tuned: Tuned
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0, weight_decay=0, eps=1e-8)
    num_steps = 2 * math.ceil(len(examples) / 8)
    warmup = math.ceil(0.1 * num_steps)
    expected = []
    for step in range(num_steps):
        epoch, position = divmod(step, num_steps // 2)
        order = np.random.default_rng([0, epoch]).permutation(len(examples))
        rows = order[8 * position : 8 * position + 8]
        done = (step - warmup) / (num_steps - warmup)
        factor = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = 3e-3 * factor
        batch = collate([examples[row] for row in rows], pad_token_id=0)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    np.testing.assert_allclose([entry["loss"] for entry in tuned.losses], expected, atol=1e-4)
    saved = load_weights(tuned.model)
    for name, value in model.state_dict().items():
        if name in saved:  # the tied head is stored once
            torch.testing.assert_close(saved[name], value, atol=2e-5, rtol=0)
    assert sum(expected[num_steps // 2 :]) < sum(expected[: num_steps // 2])
    assert [entry["step"] for entry in tuned.losses] == list(range(1, num_steps + 1))


def test_settings_of_the_machine_change_no_weight(
    tiny: Path, examples: list[Span], tuned: Tuned, tmp_path: Path
) -> None:
    compiled = replace(MACHINE, compile_layers=True, gradient_checkpointing=True)
    for name, machine in {
        "less-memory": replace(MACHINE, micro_batch_tokens=50, gradient_checkpointing=True),
        "compiled": replace(compiled, micro_batch_tokens=10**6),
    }.items():
        other = tune(tiny, examples, tmp_path / name, machine=machine)
        assert_same_weights(tuned.model, other.model, atol=2e-5)


def test_a_single_optimizer_step_trains(
    tiny: Path, examples: list[Span], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "cherry_vllm")
    recipe = replace(RECIPE, num_epochs=1, global_batch_size=128, warmup_ratio=0.03)
    done = tune(tiny, examples, tmp_path, recipe)
    assert [entry["learning_rate"] for entry in done.losses] == [3e-3]
    base = load_weights(tiny)
    moved = load_weights(done.model)
    assert all(not torch.equal(base[name], moved[name]) for name in base)
    assert "1 optimizer step(s) in all: the warm-up is 0 of them" in caplog.text


def test_lora_moves_the_merged_weights_and_nothing_else(tiny: Path, lora: Tuned) -> None:
    values = [entry["loss"] for entry in lora.losses]
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.01
    base, merged = load_weights(tiny), load_weights(lora.model)
    assert base.keys() == merged.keys()
    moved = {name for name in base if not torch.equal(base[name], merged[name])}
    assert moved == {name for name in base if "_proj." in name}


# --- the checkpoint is the model that was trained


def test_a_checkpoint_loads_as_the_trained_network(tiny: Path, tuned: Tuned) -> None:
    torch.testing.assert_close(load_logits(tuned.model), tuned.logits, atol=1e-5, rtol=0)
    assert float((tuned.logits - load_logits(tiny)).abs().max()) > 0.05
    assert json.loads((tuned.model / "config.json").read_text())["use_cache"]
    assert not list(tuned.model.glob("*.bin"))  # nothing pickled is handed on


def test_a_lora_checkpoint_loads_as_the_trained_network(
    tiny: Path, lora: Tuned, tmp_path: Path
) -> None:
    torch.testing.assert_close(load_logits(lora.model), lora.logits, atol=1e-4, rtol=0)
    assert float((lora.logits - load_logits(tiny)).abs().max()) > 0.05
    assert not list(lora.model.glob("adapter*"))
    export_bfloat16(lora.model, tmp_path / "bfloat16", seed=0)
    assert_kept(tmp_path / "bfloat16", lora, tiny)


def test_the_adapter_lies_beside_the_model_it_was_merged_into(tiny: Path, lora: Tuned) -> None:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny)
    with_adapter = PeftModel.from_pretrained(base, str(lora.folder / "adapter"))
    torch.testing.assert_close(logits_of(with_adapter), lora.logits, atol=1e-4, rtol=0)


def test_training_goes_on_from_a_lora_checkpoint(
    lora: Tuned, examples: list[Span], tmp_path: Path
) -> None:
    first, second = (
        tune(lora.model, examples, tmp_path / str(recipe.lora_rank), recipe)
        for recipe in (RECIPE, LORA)
    )
    assert first.losses[0]["loss"] == pytest.approx(second.losses[0]["loss"], abs=1e-5)
    for done in (first, second):
        torch.testing.assert_close(load_logits(done.model), done.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("recipe", [RECIPE, LORA], ids=["full", "lora"])
def test_a_multimodal_model_is_trained_on_text(
    multimodal: Path, examples: list[Span], tmp_path: Path, recipe: Recipe
) -> None:
    done = tune(multimodal, examples, tmp_path, recipe)
    torch.testing.assert_close(load_logits(done.model), done.logits, atol=1e-4, rtol=0)
    config = json.loads((done.model / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    assert [part["dtype"] for part in parts] == ["float32"] * 3
    assert "use_cache" not in config
    base, trained = load_weights(multimodal), load_weights(done.model)
    assert base.keys() == trained.keys()
    moved = {name for name in base if not torch.equal(base[name].float(), trained[name])}
    assert moved
    assert not any("vision" in name or "projector" in name for name in moved)


def test_generation_settings_that_transformers_refuses_to_save_are_kept(
    tiny: Path, examples: list[Span], tmp_path: Path
) -> None:
    released = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}  # of Vicuna v1.5
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps(released))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    done = tune(base, examples, tmp_path / "tuned", tokenizer=tokenizer)
    assert json.loads((done.model / "generation_config.json").read_text()) == released


def test_vllm_gives_the_log_probs_of_the_network_that_lora_trained(
    tiny: Path, examples: list[Span], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    make_model: Any = AutoModelForCausalLM.from_config
    wide = LlamaConfig(  # vLLM takes no heads as narrow as the tiny model's
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    make_model(wide).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    done = tune(tmp_path / "base", examples, tmp_path / "tuned", replace(LORA, num_epochs=4))
    span = Span.from_start(TOKEN_IDS[0].tolist(), 5)
    found = isolate(score_in_vllm, done.model, span)
    expected = done.logits[0].log_softmax(-1)
    places = range(span.start, len(span.token_ids))
    wanted = [float(expected[i - 1, span.token_ids[i]]) for i in places]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = logits_of(base)[0].log_softmax(-1)
    assert max(abs(float(before[i - 1, span.token_ids[i]]) - found[i - 5]) for i in places) > 0.05


def score_in_vllm(model: Path, span: Span) -> NDArray[np.float32]:
    """A span's log-probs, from an engine of its own process."""
    config = compose("engine=vllm_fused_eager", "engine.dtype=float32", "engine.cpu_kv_cache_gib=1")
    engine = build_engine(
        engine_settings(config.engine),
        read_checkpoint(model),
        max_length=128,
        trust_remote_code=False,
    )
    return engine.logprobs([span], lambda _count: None)[0]


# --- faults


def test_weights_that_are_replaced_while_they_load_are_refused(
    tiny: Path, examples: list[Span], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(base)
    load = AutoModelForCausalLM.from_pretrained

    def load_and_replace(*arguments: Any, **keywords: Any) -> Any:
        model = load(*arguments, **keywords)
        (base / "config.json").write_text((base / "config.json").read_text() + " ")
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_and_replace)
    with pytest.raises(UserError, match=r"config\.json: has changed since this run began"):
        tune(base, examples, tmp_path / "tuned", tokenizer=AutoTokenizer.from_pretrained(tiny))


def test_divergence_is_told_and_its_weights_are_not_saved(
    tiny: Path, examples: list[Span], tmp_path: Path
) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(UserError, match=r"diverged: (loss|grad_norm) is (nan|inf).*learning_rate"):
        tune(tiny, examples, tmp_path, recipe, machine=replace(MACHINE, save_steps=1))
    assert not (tmp_path / "model").exists()
    for file in (tmp_path / "checkpoints").glob("*/model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(file).values())


def test_memory_that_runs_out_is_told(tiny: Path, examples: list[Span], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    long = [Span.from_start(example.token_ids * 80, example.start) for example in examples[:8]]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, hard))
    try:
        with pytest.raises(UserError, match=r"out of memory.*micro_batch_tokens"):
            tune(tiny, long, tmp_path, machine=replace(MACHINE, micro_batch_tokens=10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_fsdp_without_gpus_is_refused(tiny: Path, examples: list[Span], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.fsdp=true: needs GPUs and torchrun"):
        tune(tiny, examples, tmp_path, machine=replace(MACHINE, fsdp=True))


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    with pytest.raises(UserError, match="report_to=nosuch"):
        check_trackers(["nosuch"])


def test_a_tokenizer_without_pad_token_trains_the_same(
    tiny: Path, examples: list[Span], tuned: Tuned, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token = None
    other = tune(tiny, examples, tmp_path, tokenizer=tokenizer)
    assert_same_weights(other.model, tuned.model, atol=0)


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    assert newest_whole_checkpoint(tmp_path) is None
    for step, state in [(2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (12, '{"glo')]:
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-14").mkdir()
    assert newest_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
