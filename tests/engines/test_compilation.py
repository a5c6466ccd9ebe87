"""When compiling a model pays."""

from pathlib import Path

import pytest

from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import compilation
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import VllmSettings

ALPACA_ROW = 169  # tokens, in both passes


@pytest.mark.parametrize(
    ("parameters", "rows", "where", "pays"),
    [
        (135e6, 1_000, {"is_on_gpu": False, "num_cores": 2}, False),  # a first run
        (135e6, 20_000, {"is_on_gpu": False, "num_cores": 2}, True),
        (135e6, 20_000, {"is_on_gpu": False, "num_cores": 64}, False),
        (7e9, 1_000, {"is_on_gpu": False, "num_cores": 2}, True),
        (135e6, 52_000, {"is_on_gpu": True, "num_cores": 16}, False),
        (135e6, 1_000_000, {"is_on_gpu": True, "num_cores": 16}, True),
        (7e9, 200_000, {"is_on_gpu": True, "num_cores": 16}, True),
    ],
)
def test_the_tokens_the_model_and_the_device_decide(
    parameters: float,
    rows: int,
    where: dict[str, int],
    *,
    pays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "count_parameters", lambda _checkpoint: int(parameters))
    settings = engine_settings(compose().engine)
    assert isinstance(settings, VllmSettings)
    assert settings.enforce_eager is None
    checkpoint = Checkpoint(Path("model"), "fingerprint", ())
    found = compilation.decide(
        settings,
        checkpoint,
        num_tokens=rows * ALPACA_ROW,
        is_on_gpu=bool(where["is_on_gpu"]),
        num_devices=1,
        num_cores=where["num_cores"],
    )
    assert found.settings.enforce_eager is not pays
    assert ("auto: compiled," if pays else "auto: not compiled,") in found.reason
    assert "\n" not in found.reason


def test_parameters_are_counted_from_the_headers(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    auto: type = AutoModelForCausalLM
    model = auto.from_pretrained(tiny)  # type: ignore[attr-defined]
    assert compilation.count_parameters(Checkpoint(tiny, "", ())) == model.num_parameters()
