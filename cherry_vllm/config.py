"""The typed configuration; the values live in ``conf/``.

Hydra composes the YAML files against these classes, so a misspelt key or a value of the wrong
type is refused before anything runs. Only the command line sees them: components take plain
arguments.
"""

from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from cherry_vllm.options import (
    DataFormat,
    Dtype,
    Mode,
    Order,
    Rule,
    Sampling,
    ScorerDtype,
    Strategy,
)

CONF = str(Path(__file__).parent / "conf")  # in a checkout, a link to the top-level folder


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    instruction: str = MISSING
    input: str | None = None
    output: str = MISSING


@dataclass(kw_only=True, slots=True)
class DataConfig:
    path: Any = None  # str or list of str: OmegaConf has no such union
    format: DataFormat = DataFormat.auto
    max_rows: int | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


@dataclass(kw_only=True, slots=True)
class CensureConfig:
    phrases: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    without_input: str = MISSING
    with_input: str = MISSING
    marker: str | None = None
    chat: bool = False
    system: str | None = None


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: str | None = None
    trust_remote_code: bool = False


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """What every engine has; ``conf/engine/`` picks one of the two below."""

    name: str = MISSING
    dtype: Dtype = Dtype.auto


@dataclass(kw_only=True, slots=True)
class VllmConfig(EngineConfig):
    tensor_parallel_size: int = MISSING
    gpu_memory_utilization: float = MISSING
    max_num_batched_tokens: int = MISSING
    max_num_seqs: int = MISSING
    enforce_eager: bool = MISSING
    enable_prefix_caching: bool = MISSING
    cpu_kv_cache_gib: float = MISSING


@dataclass(kw_only=True, slots=True)
class HfConfig(EngineConfig):
    device: str = MISSING
    batch_tokens: int = MISSING


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """What every executor has; ``conf/executor/`` picks one."""

    name: str = MISSING
    num_workers: int | None = None
    timeout_s: float = MISSING
    load_timeout_s: float = MISSING
    recycle_shards: int = MISSING


@dataclass(kw_only=True, slots=True)
class RayConfig(ExecutorConfig):
    num_cpus: int = MISSING
    address: str | None = None


@dataclass(kw_only=True, slots=True)
class ShardConfig:
    index: int = MISSING
    count: int = MISSING


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    keep_logprobs: bool = MISSING


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    """What every strategy has; ``conf/sample/`` picks one."""

    strategy: Sampling = MISSING
    count: int = MISSING


@dataclass(kw_only=True, slots=True)
class KMeansConfig(SampleConfig):
    num_clusters: int = MISSING
    percentiles: list[float] = MISSING
    n_init: int = MISSING
    minibatch_rows: int = MISSING


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    name: str = MISSING
    num_epochs: int = MISSING
    learning_rate: float = MISSING
    lr_scheduler: str = MISSING
    warmup_ratio: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    global_batch_size: int = MISSING
    micro_batch_tokens: int = MISSING
    bf16: bool = MISSING
    gradient_checkpointing: bool = MISSING
    compile_layers: bool = MISSING
    lora_rank: int = MISSING
    lora_alpha: int = MISSING
    lora_dropout: float = MISSING
    fsdp: bool = MISSING
    save_steps: float = MISSING
    report_to: list[str] = MISSING
    scorer_dtype: ScorerDtype = MISSING
    num_probe_rows: int = MISSING


@dataclass(kw_only=True, slots=True)
class SelectConfig:
    strategy: Strategy = Strategy.cherry
    fraction: float | None = None
    count: int | None = None
    num_tokens: int | None = None
    order: Order = Order.input
    rule: Rule = Rule.exact
    ratings: str = MISSING
    threshold: float | None = None
    output: str = MISSING
    num_examples: int = MISSING


@dataclass(kw_only=True, slots=True)
class QuestionColumnsConfig:
    id: str | None = None
    question: str = MISSING
    input: str | None = None
    category: str | None = None


@dataclass(kw_only=True, slots=True)
class TestsetConfig:
    path: str | None = None
    name: str | None = None
    columns: QuestionColumnsConfig = field(default_factory=QuestionColumnsConfig)


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    temperature: float = MISSING
    top_p: float = MISSING
    top_k: int = MISSING
    max_new_tokens: int | None = None
    shard_questions: int = MISSING
    output: str = MISSING


@dataclass(kw_only=True, slots=True)
class JudgePromptConfig:
    system: str = MISSING
    user: str = MISSING
    question_with_input: str = MISSING


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    mode: Mode = Mode.pairwise
    first: str | None = None
    second: str | None = None
    reviews: Any = None  # str or list of str
    against: str | None = None
    base_url: str = MISSING
    model: str | None = None
    api_key_env: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    prompt: JudgePromptConfig = field(default_factory=JudgePromptConfig)
    concurrency: int = MISSING
    timeout_s: float = MISSING
    max_tries: int = MISSING
    backoff_s: float = MISSING
    max_wait_s: float = MISSING
    threshold: float = MISSING
    fraction: float | None = None
    count: int | None = None
    aspects: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    fraction: float = MISSING
    max_embeddings: int = MISSING
    num_clusters: int = MISSING
    num_examples: int = MISSING


@dataclass(kw_only=True, slots=True)
class DemoConfig:
    cache_dir: str = MISSING


@dataclass(kw_only=True, slots=True)
class Config:
    run_dir: str = MISSING
    scores_dir: str = MISSING
    seed: int = MISSING
    max_length: int = MISSING
    shard_rows: int = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    censure: CensureConfig = field(default_factory=CensureConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    pre_experience: TrainConfig = field(default_factory=TrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    testset: TestsetConfig = field(default_factory=TestsetConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)


def plain(
    group: EngineConfig | ExecutorConfig | PromptConfig | SampleConfig | TrainConfig,
) -> dict[str, Any]:
    """A group as keyword arguments of the component that it configures."""
    items = asdict(group).items()
    return {key: value.value if isinstance(value, Enum) else value for key, value in items}


def compose(*overrides: str) -> Config:
    """The configuration that the command line would compose from these overrides.

    Raises:
        hydra.errors.ConfigCompositionException: an override does not fit the schema.
    """
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        return cast(Config, OmegaConf.to_object(hydra.compose("config", list(overrides))))


def register() -> None:
    """Makes the classes known to Hydra, under the names that ``conf/`` refers to."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="engine", name="vllm_schema", node=VllmConfig)
    store.store(group="engine", name="hf_schema", node=HfConfig)
    store.store(group="executor", name="local_schema", node=ExecutorConfig)
    store.store(group="executor", name="ray_schema", node=RayConfig)
    store.store(group="sample", name="sample_schema", node=SampleConfig)
    store.store(group="sample", name="kmeans_schema", node=KMeansConfig)
    store.store(group="train", name="train_schema", node=TrainConfig)
