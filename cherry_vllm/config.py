"""The typed configuration; the values live in ``conf/``.

Hydra composes the YAML files against these classes, so a misspelt key or a value of the wrong
type is refused before anything runs; every number and text has its limit here (:mod:`checks`).
Only the commands see them: components take plain arguments.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from cherry_vllm.checks import (
    AUTO,
    FRACTION,
    HALF,
    LIMIT,
    MOST,
    MOST_LONG,
    SIMILARITY,
    Each,
    Free,
    Interval,
    Limit,
    Named,
    OneOf,
    Quota,
    Switch,
    Text,
    check,
    number,
    seconds,
    whole,
)
from cherry_vllm.errors import UserError
from cherry_vllm.options import (
    DataFormat,
    Dedup,
    DedupOn,
    Diversify,
    Dtype,
    Mode,
    Order,
    Pool,
    ResponseFormat,
    Rule,
    Sampling,
    ScorerDtype,
    Turns,
)

if TYPE_CHECKING:  # these take a second to import, which a mistake in a key need not cost
    from cherry_vllm.engines.settings import EngineSettings
    from cherry_vllm.prompts.prompt import Prompt
    from cherry_vllm.selection.choice import Choice
    from cherry_vllm.workers.settings import ExecutorSettings

CONF = str(Path(__file__).parent / "conf")  # in a checkout, a link to the top-level folder

TEXT = Text("a text that is not empty")
PATH = Text("a path that is not empty")
URL = Text("a URL such as http://localhost:8000")
URLS = Each(URL, "a URL, or a list of URLs", one_will_do=True, min_items=1)
ANSWERS_FILE = Text("a file that ends in .jsonl", r"[^\0]*[^\0/]\.jsonl")
COMPARISON_FILE = Text("a file that ends in .json", r"[^\0]*[^\0/]\.json")
STRATEGY_FILE = Text("a file select/NAME.yaml", r"([^\0]*/)?select/[^\0/.]+\.yaml")
PATHS = Each(PATH, "a path, a glob, an hf:// path, or a list of these", one_will_do=True)
COLUMN = Text("the name of a column")
DELIMITER = Text("one character, or tab", r"[^\0\r\n\"]|tab")
DAY = Text("a day, as in 2026-01-31", r"\d{4}-\d{2}-\d{2}")
SQL = Text("a SQL expression")
SQLS = Each(SQL, "SQL expressions, as in [cluster], or []", one_will_do=True)
NAMED = Named("names and values, as in '{enable_thinking: false}'")
FILE_NAME = Text("a name without slashes", r"[^\0/.][^\0/]*")
KEY_NAME = Text("the name of an environment variable", r"[^\0=\s]+")
PHRASES = Each(TEXT, "texts that are not empty")
TRACKERS = Each(TEXT, "names of trackers that transformers knows")
SCHEDULERS = OneOf(
    (
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    )
)


def setting(
    limit: Limit, default: Any = MISSING, *, factory: Callable[[], Any] | None = None
) -> Any:
    """A field whose values are checked against a limit; without a default, ``conf/`` sets it."""
    if factory is not None:
        return field(default_factory=factory, metadata={LIMIT: limit})
    return field(default=default, metadata={LIMIT: limit})


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    instruction: str = setting(COLUMN)
    input: str | None = setting(COLUMN, None)
    output: str = setting(COLUMN)
    system: str | None = setting(COLUMN, None)
    history: str | None = setting(COLUMN, None)
    messages: str | None = setting(COLUMN, None)
    tools: str | None = setting(COLUMN, None)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    path: Any = setting(PATHS, None)  # str or list of str: OmegaConf has no such union
    split: str | None = setting(TEXT, None)
    config: str | None = setting(TEXT, None)
    format: DataFormat = DataFormat.auto
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    field: str | None = setting(TEXT, None)  # from here on, `field` is not the function
    encoding: str | None = setting(TEXT, None)
    delimiter: str | None = setting(DELIMITER, None)
    max_rows: int | None = setting(whole(1), None)


@dataclass(kw_only=True, slots=True)
class RefusalsConfig:
    phrases: list[str] = setting(PHRASES, factory=list)


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    without_input: str = setting(TEXT)
    with_input: str = setting(TEXT)
    marker: str | None = setting(TEXT, None)
    chat: bool = False
    system: str | None = setting(Free("a system message may be empty"), None)
    later_turn: str | None = setting(TEXT, None)
    answer_prefix: str = setting(Free("may be empty"), "")
    split_special_tokens: bool = False
    template_kwargs: Any = setting(
        NAMED, None
    )  # a mapping; typed as one, OmegaConf would require a +
    date: str | None = setting(DAY, None)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: str | None = setting(PATH, None)
    base: str | None = setting(PATH, None)
    trust_remote_code: bool = False


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """Settings of every engine; ``conf/engine/`` picks one of the classes below."""

    name: str = setting(OneOf(("vllm_fused", "vllm", "vllm_server", "hf")))
    dtype: Dtype = Dtype.auto


@dataclass(kw_only=True, slots=True)
class VllmConfig(EngineConfig):
    tensor_parallel_size: int = setting(whole(1))
    gpu_memory_utilization: float = setting(FRACTION)
    max_num_batched_tokens: int = setting(whole(1))
    max_num_seqs: int = setting(whole(1))
    enforce_eager: Any = setting(Switch())  # bool or "auto"
    enable_prefix_caching: bool = MISSING
    cpu_kv_cache_gib: float = setting(number(above=0, at_most=2**20))


@dataclass(kw_only=True, slots=True)
class HfConfig(EngineConfig):
    device: str = setting(Text("auto, cpu, cuda or cuda:N", r"auto|[a-z]+(:\d+)?"))
    batch_tokens: int = setting(whole(1))


@dataclass(kw_only=True, slots=True)
class ServerConfig(EngineConfig):
    base_url: Any = setting(URLS)  # str or list of str
    model: str | None = setting(TEXT, None)
    api_key_env: str | None = setting(KEY_NAME, None)
    concurrency: int = setting(whole(1, 900))  # the client has up to 1,000 connections
    timeout_s: float = setting(seconds())
    max_tries: int = setting(whole(1))
    patience_s: float = setting(seconds())
    tolerance: float = setting(number(above=0))


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """Settings of every executor; ``conf/executor/`` picks one."""

    name: str = setting(OneOf(("local", "ray")))
    num_workers: int | None = setting(whole(1), None)
    timeout_s: float = setting(seconds())
    load_timeout_s: float = setting(seconds())
    recycle_shards: int = setting(whole(1))
    retry_failed: bool = MISSING


@dataclass(kw_only=True, slots=True)
class RayConfig(ExecutorConfig):
    num_cpus: int = setting(whole(1))
    address: str | None = setting(Text("auto, or the address of a cluster's head"), None)


@dataclass(kw_only=True, slots=True)
class ShareConfig:
    index: int = setting(whole(0))
    count: int = setting(whole(1))


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    turns: Turns = MISSING
    keep_logprobs: bool = MISSING
    s_ifd_percent: float = setting(number(above=0, at_most=100))


@dataclass(kw_only=True, slots=True)
class CheckConfig:
    count: int | None = setting(whole(1), None)
    min_spearman: float | None = setting(number(at_least=-1, at_most=1), None)
    max_ifd_difference: float | None = setting(number(above=0), None)
    max_logprob_difference: float | None = setting(number(above=0), None)


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    """Settings of every sampling strategy; ``conf/sample/`` picks one."""

    strategy: Sampling = MISSING
    count: int = setting(whole(0))


@dataclass(kw_only=True, slots=True)
class KMeansConfig(SampleConfig):
    num_clusters: int = setting(whole(1))
    percentiles: list[float] = setting(Interval(0, 100))
    n_init: int = setting(whole(1))
    minibatch_rows: int = setting(whole(1))


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    name: str = setting(FILE_NAME)
    num_epochs: int = setting(whole(1))
    learning_rate: float = setting(number(above=0))
    lr_scheduler: str = setting(SCHEDULERS)
    warmup_ratio: float = setting(number(at_least=0, at_most=1))
    weight_decay: float = setting(number(at_least=0))
    max_grad_norm: float = setting(number(at_least=0))
    global_batch_size: int = setting(whole(1))
    micro_batch_tokens: int = setting(whole(1))
    bf16: bool = MISSING
    gradient_checkpointing: bool = MISSING
    compile_layers: bool = MISSING
    lora_rank: int = setting(whole(0))
    lora_alpha: int = setting(whole(1))
    lora_dropout: float = setting(number(at_least=0, below=1))
    fsdp: bool = MISSING
    save_steps: float = setting(number(above=0, at_most=MOST))
    report_to: list[str] = setting(TRACKERS)
    scorer_dtype: ScorerDtype = MISSING
    num_probe_rows: int = setting(whole(0))


@dataclass(kw_only=True, slots=True)
class SelectConfig:
    """Settings of every selection strategy; ``conf/select/`` picks one."""

    name: str = setting(TEXT)
    pool: Pool = Pool.usable
    where: str | None = setting(SQL, None)
    rank: str = setting(SQL)
    threshold: float | None = setting(number(), None)
    dedup: Dedup | None = None
    dedup_on: DedupOn = DedupOn.instruction
    dedup_threshold: float = setting(SIMILARITY)
    fraction: float | None = setting(FRACTION, None)
    count: int | None = setting(whole(1), None)
    num_tokens: int | None = setting(whole(1, MOST_LONG), None)
    strata: Any = setting(SQLS, factory=list)  # str or list of str
    bins: int = setting(whole(2))
    quota: Any = setting(Quota(), "proportional")  # a word or a mapping
    max_per_group: int | None = setting(whole(1), None)
    group: str = setting(SQL)
    diversify: Diversify | None = None
    candidates: float | None = setting(number(at_least=1), None)
    embeddings: str | None = setting(PATH, None)
    join: Any = setting(PATHS, factory=list)  # str or list of str
    ratings: str = setting(PATH)
    num_clusters: int = setting(whole(1))
    order: Order = Order.input
    rule: Rule = Rule.exact
    with_scores: bool = MISSING
    output: str = setting(PATH)
    num_examples: int = setting(whole(0))


@dataclass(kw_only=True, slots=True)
class FitConfig:
    table: str | None = setting(PATH, None)
    loss: str = setting(COLUMN)
    indicators: Any = setting(SQLS, factory=list)  # str or list of str
    output: str = setting(STRATEGY_FILE)


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    first: str | None = setting(PATH, None)
    second: str | None = setting(PATH, None)
    output: str | None = setting(COMPARISON_FILE, None)
    num_examples: int = setting(whole(0))


@dataclass(kw_only=True, slots=True)
class QuestionColumnsConfig:
    id: str | None = setting(COLUMN, None)
    question: str = setting(COLUMN)
    input: str | None = setting(COLUMN, None)
    category: str | None = setting(COLUMN, None)


@dataclass(kw_only=True, slots=True)
class TestsetConfig:
    path: str | None = setting(PATH, None)
    name: str | None = setting(TEXT, None)
    columns: QuestionColumnsConfig = field(default_factory=QuestionColumnsConfig)


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    temperature: float = setting(number(at_least=0))
    top_p: float = setting(FRACTION)
    top_k: int = setting(whole(0))
    max_new_tokens: int | None = setting(whole(1), None)
    shard_questions: int = setting(whole(1))
    output: str = setting(ANSWERS_FILE)


@dataclass(kw_only=True, slots=True)
class JudgePromptConfig:
    system: str = setting(Free("a system message may be empty"))
    user: str = setting(TEXT)
    reply_as_json: str = setting(TEXT)
    reply_as_text: str = setting(TEXT)
    question_with_input: str = setting(TEXT)


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    mode: Mode = Mode.pairwise
    first: str | None = setting(PATH, None)
    second: str | None = setting(PATH, None)
    reviews: Any = setting(PATHS, None)  # str or list of str
    against: str | None = setting(PATH, None)
    base_url: str = setting(Text("a URL such as http://localhost:8000/v1"))
    model: str | None = setting(TEXT, None)
    api_key_env: str | None = setting(KEY_NAME, None)
    parameters: dict[str, Any] = setting(
        Free("only the endpoint knows which ones it takes"), factory=dict
    )
    response_format: ResponseFormat = ResponseFormat.json_schema
    prompt: JudgePromptConfig = field(default_factory=JudgePromptConfig)
    concurrency: int = setting(whole(1, 10_000))
    timeout_s: float = setting(seconds())
    max_tries: int = setting(whole(1))
    threshold: float = setting(number())
    fraction: float | None = setting(HALF, None)
    count: int | None = setting(whole(1), None)
    aspects: dict[str, str] = setting(
        Free("any words; judge=aspects needs at least one"), factory=dict
    )


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    fraction: float = setting(HALF)
    max_embeddings: int = setting(whole(10))
    num_clusters: int = setting(whole(2))
    num_examples: int = setting(whole(0))


@dataclass(kw_only=True, slots=True)
class DemoConfig:
    cache_dir: str = setting(PATH)


@dataclass(kw_only=True, slots=True)
class Config:
    run_dir: str = setting(PATH)
    scores_dir: str = setting(PATH)
    seed: int = setting(whole(0, 2**32 - 1))
    max_length: int = setting(whole(1))
    shard_rows: int = setting(whole(1))
    verbose: bool = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    refusals: RefusalsConfig = field(default_factory=RefusalsConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    share: ShareConfig = field(default_factory=ShareConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    pre_experience: TrainConfig = field(default_factory=TrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    testset: TestsetConfig = field(default_factory=TestsetConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)


def arguments_of(
    group: EngineConfig | ExecutorConfig | SampleConfig | TrainConfig,
) -> dict[str, Any]:
    """A group's settings, as keyword arguments of the component that it configures."""
    items = asdict(group).items()
    return {key: value.value if isinstance(value, Enum) else value for key, value in items}


def engine_settings(engine: EngineConfig) -> "EngineSettings":
    """The engine's settings, as components take them."""
    from cherry_vllm.engines.settings import HfSettings, ServerSettings, VllmSettings

    if isinstance(engine, ServerConfig):
        return ServerSettings(**arguments_of(engine))
    if isinstance(engine, VllmConfig):
        given = arguments_of(engine)
        is_open = given["enforce_eager"] == AUTO
        return VllmSettings(**given | ({"enforce_eager": None} if is_open else {}))
    return HfSettings(**arguments_of(engine))


def executor_settings(executor: ExecutorConfig) -> "ExecutorSettings":
    """The executor's settings, as components take them."""
    from cherry_vllm.workers.settings import ExecutorSettings, RaySettings

    settings = arguments_of(executor)
    del settings["name"]  # the class stands for it
    return (
        RaySettings(**settings) if isinstance(executor, RayConfig) else ExecutorSettings(**settings)
    )


def check_config(config: Config) -> None:
    """Checks every setting against its limit, and against settings that limit it.

    Raises:
        UserError: a setting is outside its limit.
    """
    check(config)
    engine = config.engine
    if isinstance(engine, VllmConfig) and engine.max_num_batched_tokens < engine.max_num_seqs:
        raise UserError(
            f"engine.max_num_batched_tokens={engine.max_num_batched_tokens}: give at least "
            f"engine.max_num_seqs={engine.max_num_seqs}"
        )
    if isinstance(engine, ServerConfig) and engine.dtype is not Dtype.auto:
        raise UserError(
            f"engine.dtype={engine.dtype.value}: the servers decide on the type; start them with "
            "--dtype, and leave engine.dtype out"
        )


def typed(composed: DictConfig) -> Config:
    """What Hydra composed, as dataclasses; every setting is checked.

    Raises:
        UserError: a setting is outside its limit.
    """
    config = cast(Config, OmegaConf.to_object(composed))
    check_config(config)
    _expand_home(config)
    return config


def _expand_home(settings: Any) -> None:
    """Replaces a ``~`` at the beginning of paths, which shells do not expand after ``key=``."""
    for item in fields(settings):
        value, limit = getattr(settings, item.name), item.metadata.get(LIMIT)
        if is_dataclass(value):
            _expand_home(value)
        elif limit in (PATH, ANSWERS_FILE, COMPARISON_FILE, STRATEGY_FILE) and value is not None:
            setattr(settings, item.name, _from_home(value))
        elif limit == PATHS and value is not None:
            is_one = isinstance(value, str)
            paths = _from_home(value) if is_one else [_from_home(path) for path in value]
            setattr(settings, item.name, paths)


def _from_home(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 - leaves hf:// and an unknown ~name alone


def prompt_of(config: Config) -> "Prompt":
    """The prompt's settings, as components take them."""
    from cherry_vllm.prompts.prompt import Prompt

    settings = asdict(config.prompt)
    return Prompt(**settings | {"template_kwargs": settings["template_kwargs"] or {}})


def as_list(value: str | list[str]) -> list[str]:
    """The items of a setting that also takes a lone item."""
    return [value] if isinstance(value, str) else list(value)


def choice_of(config: Config) -> "Choice":
    """The settings of a selection, as components take them.

    Raises:
        UserError: two settings contradict each other.
    """
    from cherry_vllm.selection.choice import Choice

    settings = {item.name: getattr(config.select, item.name) for item in fields(config.select)}
    shared = settings.keys() & {item.name for item in fields(Choice)}
    quota = settings["quota"]
    is_mapping = isinstance(quota, dict)
    texts = {
        "strategy": settings["name"],
        "strata": tuple(as_list(settings["strata"])),
        "quota": {str(name): share for name, share in quota.items()} if is_mapping else quota,
    }
    return Choice(**{name: settings[name] for name in shared} | texts, seed=config.seed)


def compose(*overrides: str) -> Config:
    """The configuration that the command line would compose from these overrides.

    Raises:
        hydra.errors.ConfigCompositionException: an override does not fit the schema.
        UserError: a setting is outside its limit.
    """
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        return typed(hydra.compose("config", list(overrides)))


@cache
def register() -> None:
    """Registers the classes with Hydra, under the names that ``conf/`` refers to."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="engine", name="vllm_schema", node=VllmConfig)
    store.store(group="engine", name="hf_schema", node=HfConfig)
    store.store(group="engine", name="server_schema", node=ServerConfig)
    store.store(group="executor", name="local_schema", node=ExecutorConfig)
    store.store(group="executor", name="ray_schema", node=RayConfig)
    store.store(group="sample", name="sample_schema", node=SampleConfig)
    store.store(group="sample", name="kmeans_schema", node=KMeansConfig)
    store.store(group="train", name="train_schema", node=TrainConfig)
