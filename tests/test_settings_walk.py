"""Every setting changes the names of what it affects, or can't change a result: which, and why.

The stages run for real up to where a model, a training run or a judge would start, and the names
(fingerprints) under which they would keep their results are recorded. A setting that changed a
result but no name would have a stage find, and take for its own, what other settings made.
"""

import json
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any, get_origin

import polars as pl
import pytest

from cherry_vllm.checks import OneOf
from cherry_vllm.cli.keys import known_keys
from cherry_vllm.cli.stages import STAGES
from cherry_vllm.commands.job import Job
from cherry_vllm.config import Config, compose
from cherry_vllm.engines import adapters, served
from cherry_vllm.engines.checkpoint import Checkpoint, read_checkpoint
from cherry_vllm.engines.weights import ADAPTER_WEIGHTS
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.prompts import AspectRequests, JudgePrompt, RequestSettings
from cherry_vllm.evaluation.replies import Replies
from cherry_vllm.options import DataFormat, Mode
from cherry_vllm.sources import row_shards as sources
from cherry_vllm.store import hashes
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import ModelRun
from tests.fakes import write_checkpoint
from tests.runs import plain_answer, write_rows

ROWS = {"rows"}
SCORES = {"logprobs"}
PROMPTS = {"embeddings", "experience"}
MODELS = {"models"}
ANSWERS = {"answers"}
BY_MODEL = SCORES | PROMPTS | MODELS | ANSWERS
REPLIES = {"replies"}

# What a setting affects; a name stands for all keys below it that have no entry of their own.
AFFECTS = {
    "data": ROWS | SCORES | PROMPTS | MODELS,
    "refusals": ROWS | SCORES | PROMPTS | MODELS,
    "shard_rows": ROWS | SCORES | PROMPTS | MODELS,
    "prompt": BY_MODEL,
    "max_length": BY_MODEL,
    "model": BY_MODEL,
    "engine": SCORES | PROMPTS | ANSWERS,
    "seed": {"experience"} | MODELS,
    "score": SCORES,
    "score.turns": ROWS | SCORES | PROMPTS | MODELS,
    "sample": {"experience"},
    "train": MODELS,
    "testset": {"questions"} | ANSWERS,
    "generate": ANSWERS,
    "generate.shard_questions": {"questions"} | ANSWERS,
    "judge": REPLIES,
}

# What can't change a result that is found again, and why.
HARMLESS = {
    "run_dir": "the place of all results",
    "scores_dir": "the place of the scores, which hold the name of their log-probs",
    "data.split": "which files are read; what they hold is in the name",
    "data.config": "which files are read; what they hold is in the name",
    "verbose": "what is shown",
    "share": "which process makes a shard, not what is in it",
    "executor": "how workers are started and watched, not what they compute",
    "engine.gpu_memory_utilization": "memory",
    "engine.cpu_kv_cache_gib": "memory",
    "engine.base_url": "the place of the served model, whose log-probs are compared",
    "engine.api_key_env": "who may ask",
    "engine.concurrency": "how many requests are under way",
    "engine.timeout_s": "when to give up",
    "engine.max_tries": "when to give up",
    "engine.patience_s": "when to give up",
    "engine.tolerance": "what is refused",
    "sample.strategy": "set by sample=..., which is walked as a whole",
    "pre_experience": "a train group, which `pipeline` gives to `train`; walked as train",
    "train.name": "begins the folder's name itself",
    "train.micro_batch_tokens": "memory and speed; a step has the same rows",
    "train.gradient_checkpointing": "memory",
    "train.compile_layers": "speed",
    "train.fsdp": "memory",
    "train.save_steps": "what a killed run loses",
    "train.report_to": "who is told",
    "train.num_probe_rows": "what is measured next to training",
    "score.s_ifd_percent": "computed again from the log-probs; score.json holds it",
    "check": "measured again each time",
    "select": "done again each time; .meta.json holds the settings",
    "fit": "done again each time",
    "compare": "done again each time",
    "generate.output": "the place of a copy",
    "judge.mode": "set by judge=..., which is walked as a whole",
    "judge.reviews": "no request is made",
    "judge.against": "compared again each time",
    "judge.concurrency": "how many requests are under way",
    "judge.api_key_env": "who pays",
    "judge.timeout_s": "when to give up",
    "judge.max_tries": "when to give up",
    "judge.threshold": "counted again each time",
    "judge.fraction": "which rows are asked about; each request has its own name",
    "judge.count": "which rows are asked about; each request has its own name",
    "report": "drawn again each time",
    "demo": "the place of the demo's files",
}

OTHER = {  # values that a rule of a setting's own asks for
    "data.columns.instruction": "output",
    "data.columns.input": "output",
    "data.columns.output": "instruction",
    "data.columns.system": None,
    "data.columns.history": None,
    "data.columns.messages": None,
    "data.columns.tools": None,
    "data.format": DataFormat.jsonl,
    "data.field": "more",
    "data.encoding": "latin-1",
    "data.delimiter": ",",
    "judge.reviews": "reviews.json",
    "select.strata": ["cluster"],
    "select.quota": "equal",
    "select.join": ["ratings.parquet"],
    "fit.indicators": ["ifd"],
    "prompt.chat": True,
    "prompt.later_turn": "{instruction}",
    "prompt.template_kwargs": {"x": "y"},
    "prompt.date": "2026-01-31",
    "engine.enforce_eager": True,
    "engine.max_num_seqs": 100,
    "engine.base_url": ["http://elsewhere:8000"],
    "sample.count": 200,
    "sample.num_clusters": 50,
    "sample.percentiles": [20.0, 80.0],
    "testset.columns.id": "category",
    "testset.columns.question": "id",
    "testset.columns.input": "category",
    "testset.columns.category": "id",
}


# Rooms that name what they make themselves; others leave it to Shards and Replies.
ROOMS = ("cherry_vllm.experience", "cherry_vllm.training")


class Stop(BaseException):
    """Here a stage would start its work."""


Names = dict[str, set[str]]
Find = Callable[[Config], Names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of each: data, models, test sets and files of answers."""
    folder = tmp_path_factory.mktemp("walk")
    for name in ("one", "one_more"):
        write_rows(folder / f"{name}.jsonl", [plain_answer(len(name) + n) for n in range(4)])
        template = write_checkpoint(folder / name, name.encode()) / "chat_template.jinja"
        template.write_text(f"{{{{ strftime_now('%Y') }}}}{template.read_text()}")
        answer = {
            "id": "q",
            "question": "Why?",
            "input": "x",
            "answer": f"Because of {name}.",
            "model": name,
        }
        question = {"id": name, "question": "Why?", "input": "x", "category": "c"}
        (folder / f"{name}-answers.jsonl").write_text(json.dumps(answer))
        (folder / f"{name}-questions.jsonl").write_text(json.dumps(question))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    shutil.copy(folder / "one" / "model.safetensors", folder / "adapter" / ADAPTER_WEIGHTS)
    records = [json.loads(line) for line in (folder / "one.jsonl").read_text().splitlines()]
    (folder / "one.json").write_text(json.dumps({"data": records, "more": records}))
    pl.DataFrame(records).write_csv(folder / "one.csv")
    return folder


@pytest.fixture(scope="module")
def find_names(place: Path) -> Iterator[Find]:
    """What the stages would keep their results under, by kind of result."""
    names: Names = {}

    def keep(kind: str, name: str) -> None:
        names.setdefault(kind, set()).add(name)

    with pytest.MonkeyPatch.context() as patch:
        _stop_before_work(patch, keep)
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))  # slow
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr(adapters, "isolate", merge)
        patch.setattr(served, "find_served", lambda path, *_, **__: read_checkpoint(Path(path)))
        patch.setenv("KEY", "secret")
        patch.setenv("KEY_x", "secret")

        def find(config: Config) -> Names:
            names.clear()
            for stage in ("score", "embed", "sample", "train", "generate", "judge"):
                with suppress(Stop):
                    STAGES[stage](config, Job(Path(config.run_dir), is_sweep=False))
            return {kind: set(found) for kind, found in names.items()}

        yield find


def merge(_write: object, target: Path, _adapter: Path, base: Checkpoint, **_: object) -> None:
    """Stands for the merged model, which is named before it is made."""
    shutil.copytree(base.folder, target, dirs_exist_ok=True)


def _stop_before_work(patch: pytest.MonkeyPatch, keep: Callable[[str, str], None]) -> None:
    begin = Shards.__init__

    def shards(self: Shards, parent: Path, settings: dict[str, Any]) -> None:
        begin(self, parent, settings)
        keep(parent.name, self.fingerprint)

    def run(self: ModelRun, *_args: object, **_keywords: object) -> Shards:
        if self.target.folder.parent.name in ("logprobs", "answers"):
            raise Stop
        self.target.close(0)  # what follows asks for its contents
        return self.target

    def name_and_stop(settings: Any, room: str) -> str:
        keep({"training": "models"}.get(room, room), hashes.fingerprint(settings))
        raise Stop

    def stop(*_args: object) -> None:
        raise Stop

    patch.setattr(Shards, "__init__", shards)
    patch.setattr(ModelRun, "run", run)
    patch.setattr(sources, "isolate", lambda function, *arguments: function(*arguments))
    for name, module in list(sys.modules.items()):
        if name.startswith(ROOMS) and hasattr(module, "fingerprint"):
            patch.setattr(module, "fingerprint", partial(name_and_stop, room=name.split(".")[1]))
    patch.setattr(Replies, "get", lambda _self, name: keep("replies", name))
    patch.setattr(Endpoint, "ask", stop)


@dataclass(frozen=True)
class Variant:
    """A way to compose, the groups that are walked in it, and what is different in it."""

    words: list[str]
    groups: tuple[str, ...] = ("",)
    affects: dict[str, set[str]] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()  # settings that it refuses, walked in another variant
    data: str = "one.jsonl"


CHAT = ("prompt.system", "prompt.template_kwargs", "prompt.date")
TEXT = ("judge.prompt.reply_as_text",)
ASPECTS = ("judge.aspects",)  # walked below
BASE = ("model.base",)
LAYOUT = ("data.field", "data.delimiter")

VARIANTS = {
    # Settled, since deciding it takes a moment each time.
    "vllm": Variant(
        ["judge=pairwise", "engine.enforce_eager=false"],
        elsewhere=(*CHAT, *TEXT, *ASPECTS, *BASE, *LAYOUT),
    ),
    "csv": Variant([], ("data.delimiter",), data="one.csv"),
    "wrapped": Variant(["data.field=data"], ("data.field",), data="one.json"),
    "chat": Variant(["prompt=chat"], CHAT),
    "adapter": Variant([], BASE),
    "hf": Variant(["engine=hf", "executor=ray"], ("engine", "executor")),
    "servers": Variant(["engine=vllm_server"], ("engine",), elsewhere=("engine.dtype",)),
    "rating": Variant(["judge=rating"], ("judge.model", "judge.base_url", "judge.parameters")),
    "text": Variant(["judge.response_format=text"], TEXT),
    "drawn": Variant(
        ["generate.temperature=1", "sample=random"],
        ("generate", "sample", "seed"),
        {"seed": {"experience"} | MODELS | ANSWERS},
    ),
}


# The walk over most settings is slow; the others are those that it leaves out.
SLOW = dict.fromkeys(("vllm", "hf", "servers", "drawn", "chat", "rating"), pytest.mark.slow)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=SLOW.get(name, ())) for name in VARIANTS]
)
def variant(request: pytest.FixtureRequest) -> str:
    """The name of a way to compose."""
    return str(request.param)


@pytest.fixture(scope="module")
def config(variant: str, place: Path) -> Config:
    """A configuration with which every stage has work to do."""
    config = compose(
        *VARIANTS[variant].words,
        f"run_dir={place / 'run'}",
        f"data.path={place / VARIANTS[variant].data}",
        f"model.path={place / 'one'}",
        f"testset.path={place / 'one-questions.jsonl'}",
        "judge.model=one",
        "judge.api_key_env=KEY",
    )
    if variant == "adapter":
        config.model.path, config.model.base = str(place / "adapter"), config.model.path
    if config.judge.mode is Mode.pairwise:
        config.judge.first = config.judge.second = str(place / "one-answers.jsonl")
    return config


def list_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting: its key, the group that holds it, and its name there."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from list_settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", config, item.name


def another(key: str, value: Any) -> Any:
    """Another value that the setting may have."""
    if key in OTHER:
        return OTHER[key]
    kind, limit, _ = known_keys()[key]
    if isinstance(limit, OneOf):
        return next(word for word in limit.words if word != value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(item for item in kind if item is not value)
    if isinstance(value, str) and "/one" in value:
        return value.replace("/one", "/one_more")
    changed: dict[type, Callable[[], Any]] = {
        bool: lambda: not value,
        int: lambda: (value or 0) + 1,
        float: lambda: value / 2 if value else 0.5,
        str: lambda: f"{value or ''}_x",
        list: lambda: [*value, "x"],
        dict: lambda: {**(value or {}), "x": "y"},
    }
    return changed[get_origin(kind) or kind]()


def entry_of(key: str, table: Mapping[str, Any]) -> Any:
    """What a table says of a key, or of the closest group above it."""
    while key and key not in table:
        key = key.rpartition(".")[0]
    return table.get(key)


def test_every_setting_changes_the_names_of_what_it_affects_or_can_change_nothing(
    variant: str, config: Config, find_names: Find
) -> None:
    walked = VARIANTS[variant]
    before, wrong = find_names(config), []
    assert set(before) == set().union(*AFFECTS.values())
    assert find_names(config) == before
    for key, group, name in list_settings(config):
        if not key.startswith(walked.groups) or key in walked.elsewhere:
            continue
        value = getattr(group, name)
        setattr(group, name, another(key, value))
        try:
            after = find_names(config)
        except UserError as error:
            if entry_of(key, HARMLESS) is None:
                wrong.append(f"{key}: refused: {error}")
            continue
        finally:
            setattr(group, name, value)
        changed = {kind for kind in before if before[kind] != after.get(kind)}
        reason = entry_of(key, HARMLESS)
        expected = set() if reason else entry_of(key, AFFECTS | walked.affects)
        if changed != expected:
            wrong.append(f"{key}: changes {changed or 'nothing'}, not {expected}")
    assert "\n".join(wrong) == ""


@pytest.mark.slow
def test_the_walk_meets_every_setting_and_every_exception_has_a_reason() -> None:
    met = {key for one in VARIANTS.values() for key, _, _ in list_settings(compose(*one.words))}
    assert met == set(known_keys())
    assert all(HARMLESS.values())
    for key in HARMLESS | AFFECTS:
        assert any(known == key or known.startswith(f"{key}.") for known in met), key


@pytest.mark.slow
def test_what_an_aspect_means_is_in_the_request() -> None:
    judge = compose("judge=aspects", "judge.model=one").judge
    settings = RequestSettings(
        model="one",
        parameters=judge.parameters,
        response_format=judge.response_format,
        prompt=JudgePrompt(**asdict(judge.prompt)),
    )
    bodies = [
        AspectRequests(settings, aspects).build("Why?", "")
        for aspects in (judge.aspects, {**judge.aspects, "Scope": "x"}, {"Scope": "x"})
    ]
    assert len({json.dumps(body) for body in bodies}) == 3
