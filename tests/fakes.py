"""A fake engine and an executor within the test's process, for plumbing: drivers, shards, progress.

A fake's log-probs follow from the token ids and the bytes of the weights alone, so a shard that is
scored again is the same shard, and a shard of other weights is another. Claims about numbers,
engines and processes are tested on the real thing.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from cherry_vllm.engines import Continuation, Embedded, Span
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.schema import REASON
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.failures import EngineError
from cherry_vllm.workers.work import Made, Piece, Task, Work

TOKENIZER = Path(__file__).parent / "data" / "tokenizer"
WIDTH = 4  # of an embedding


def write_checkpoint(folder: Path, weights: bytes = b"weights") -> Path:
    """A model folder that only :class:`FakeEngine` can run, with the committed tokenizer."""
    from safetensors.numpy import save_file

    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": 2000,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"weights": np.frombuffer(weights, np.uint8)}, folder / "model.safetensors")
    return folder


@dataclass
class Faults:
    """What goes wrong in a fake engine; ``calls`` counts what it was asked for."""

    delay_s: float = 0  # for each sequence
    deadly_tokens: frozenset[int] = frozenset()  # a call with one of these raises ``error``
    error: BaseException = field(default_factory=lambda: RuntimeError("CUDA error: unknown"))
    load_error: BaseException | None = None
    calls: int = 0
    loads: int = 0

    def meet(self, sequences: Sequence[list[int]]) -> None:
        """Counts a call, and raises if it holds a deadly token."""
        self.calls += 1
        if any(self.deadly_tokens.intersection(token_ids) for token_ids in sequences):
            raise self.error


class FakeEngine:
    """Engine, embedder and generator in one, without a model."""

    def __init__(
        self, checkpoint: Checkpoint, faults: Faults | None = None, *, with_code: bool = False
    ) -> None:
        """``with_code`` says that the model's own code runs, which makes another model of it."""
        self._faults = faults or Faults()
        self._faults.loads += 1
        if self._faults.load_error:
            raise self._faults.load_error
        digest = hashlib.sha256()
        for file in sorted(checkpoint.folder.glob("*.safetensors")):
            digest.update(file.read_bytes())
        self._salt = int.from_bytes(digest.digest()[:4]) + with_code

    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        self._faults.meet([span.token_ids for span in spans])
        return [self._score(span, on_scored) for span in spans]

    def embed(self, prompts: Sequence[list[int]], on_embedded: Callable[[int], None]) -> Embedded:
        """See :class:`cherry_vllm.engines.Embedder`."""
        self._faults.meet(prompts)
        vectors = np.zeros((len(prompts), WIDTH), np.float32)
        for row, token_ids in enumerate(prompts):
            vectors[row] = self._noise(np.array(token_ids[-WIDTH:])).mean() + np.arange(WIDTH)
        spans = [Span.from_start(token_ids, 1) for token_ids in prompts]
        return Embedded(vectors, [self._score(span, on_embedded) for span in spans])

    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """See :class:`cherry_vllm.engines.Generator`."""
        self._faults.meet(prompts)
        answers = []
        for token_ids in prompts:
            answers.append(Continuation([(sum(token_ids) + seed) % 1000 + 10], is_whole=True))
            self._finish(on_answered)
        return answers

    def _score(self, span: Span, on_scored: Callable[[int], None]) -> NDArray[np.float32]:
        token_ids = np.array(span.token_ids)
        found = []
        for start, stop in span.ranges:
            pairs = token_ids[start:stop] * 31 + token_ids[start - 1 : stop - 1]
            # An answer that follows a prompt is likelier than one that follows a marker.
            ease = np.float32(1 / (1 + start))
            found.append(np.asarray(-self._noise(pairs) - ease, np.float32))
        self._finish(on_scored)
        return np.concatenate(found)

    def _noise(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Numbers from 0.01 to 10 that depend on the weights."""
        mixed = (numbers.astype(np.uint64) + np.uint64(self._salt)) * np.uint64(2654435761)
        return np.asarray((mixed % np.uint64(1000) + np.uint64(1)) / 100, np.float32)

    def _finish(self, on_done: Callable[[int], None]) -> None:
        if self._faults.delay_s:
            time.sleep(self._faults.delay_s)
        on_done(1)


class InlineExecutor:
    """Workers in the driver's own threads, over whatever engine the task opens."""

    def __init__(
        self, num_workers: int = 1, on_piece: Callable[[int, Piece], None] | None = None
    ) -> None:
        """``on_piece`` is called with a slot and a piece before it is made.

        It may raise WorkerError, as if the worker had died, or anything else, which ends the run.
        """
        self.num_workers = num_workers
        self.on_piece = on_piece or (lambda _slot, _piece: None)
        self.started: list[int] = []  # the slot of each worker

    def start(self, slot: int, task: Task) -> "InlineWorker":
        """See :class:`cherry_vllm.workers.Executor`."""
        self.started.append(slot)
        return InlineWorker(self, slot, task)


class InlineWorker:
    def __init__(self, executor: InlineExecutor, slot: int, task: Task) -> None:
        self._executor, self._slot, self._task = executor, slot, task
        self._is_killed = False

    def load(self) -> None:
        """See :class:`cherry_vllm.workers.Worker`."""
        try:
            self._work = Work(self._task)
        except EngineError as error:
            lost = WorkerError.of_engine(error)
            lost.while_loading = True
            raise lost from None

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """See :class:`cherry_vllm.workers.Worker`."""
        self._executor.on_piece(self._slot, piece)
        try:
            made = self._work.make(piece, on_units)
        except EngineError as error:
            raise WorkerError.of_engine(error) from None
        if self._is_killed:
            raise WorkerError("was killed by SIGKILL")
        return made

    def kill(self) -> None:
        """See :class:`cherry_vllm.workers.Worker`."""
        self._is_killed = True

    def close(self) -> None:
        """See :class:`cherry_vllm.workers.Worker`."""


SCORED = {"row": pl.Int64, "logprob": pl.Float32, "drop_reason": REASON}


def make_shard(
    rows: pl.DataFrame, on_scored: Callable[[int], None], *, builder: Any, model: Any
) -> pl.DataFrame:
    """A shard function as simple as can be: one token a row, which is the row's number."""
    assert builder is None
    logprobs = model([Span.from_start([1, row], 1) for row in rows["row"]], on_scored)
    values = [float(found[0]) for found in logprobs]
    frame = pl.DataFrame({"row": rows["row"], "logprob": values, "drop_reason": None})
    return frame.cast(SCORED)  # type: ignore[arg-type]


def write_row_shards(shards: Shards, num_shards: int, shard_rows: int) -> Shards:
    """Shards of rows for :func:`make_shard`."""
    for index in range(num_shards):
        first = index * shard_rows
        rows = pl.DataFrame({"row": range(first, first + shard_rows)}, {"row": pl.Int64})
        shards.write(index, rows)
    return shards


def install(
    monkeypatch: pytest.MonkeyPatch,
    executor: InlineExecutor | None = None,
    faults: Faults | None = None,
) -> InlineExecutor:
    """Makes every command of the test's process use the fakes, reading the input inline too."""
    inline = executor or InlineExecutor()

    def build(_engine: Any, checkpoint: Checkpoint, **settings: Any) -> FakeEngine:
        return FakeEngine(checkpoint, faults, with_code=settings.get("trust_remote_code", False))

    def run_here(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        keywords.pop("environment", None)
        return function(*arguments, **keywords)

    monkeypatch.setattr("cherry_vllm.workers.run.build_executor", lambda *_, **__: inline)
    monkeypatch.setattr("cherry_vllm.sources.row_shards.isolate", run_here)
    monkeypatch.setattr("cherry_vllm.scoring.run.build_engine", build)
    monkeypatch.setattr("cherry_vllm.scoring.trial.build_engine", build)
    monkeypatch.setattr("cherry_vllm.experience.embeddings.build_embedder", build)
    monkeypatch.setattr("cherry_vllm.evaluation.generation.build_generator", build)
    return inline


@contextmanager
def stages_in_this_process(*more: str) -> Iterator[None]:
    """Saves a new interpreter for each stage and each worker; ``more`` modules call isolate too."""

    def run_here(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        keywords.pop("environment", None)
        return function(*arguments, **keywords)

    inline = InlineExecutor()
    rooms = ("commands.pipeline", "sources.row_shards", "training.processes")
    with pytest.MonkeyPatch.context() as patch:
        for module in (*(f"cherry_vllm.{room}" for room in rooms), *more):
            patch.setattr(f"{module}.isolate", run_here)
        patch.setattr("cherry_vllm.workers.run.build_executor", lambda *_, **__: inline)
        yield
