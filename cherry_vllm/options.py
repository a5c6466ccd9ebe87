"""The choices that both the configuration and the rooms know by name."""

from enum import Enum


class DataFormat(Enum):
    auto = "auto"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"
    arrow = "arrow"


class Sampling(Enum):
    """Which rows the pre-experienced model learns from."""

    kmeans = "kmeans"  # some of every cluster of instructions: the paper's first strategy
    difficulty = "difficulty"  # the highest IFD under the base model: its second
    random = "random"
    none = "none"  # no experience: the base model scores


class Strategy(Enum):
    """Which usable rows come first."""

    cherry = "cherry"  # highest IFD
    low_ifd = "low_ifd"  # lowest IFD
    high_conditioned = "high_conditioned"  # highest conditioned score, the paper's "high CA"
    longest = "longest"  # most answer tokens: what high IFD has to beat
    rating = "rating"  # highest rating by a judge, as AlpaGasus chooses
    random = "random"


class Order(Enum):
    """The order of the chosen rows in the output."""

    input = "input"
    ifd = "ifd"  # highest first


class Rule(Enum):
    """How many rows, and which of equals: ours, or one of the reference's two scripts."""

    exact = "exact"
    data_by_ifd = "data_by_ifd"
    select_from_ifd_json = "select_from_ifd_json"


class Mode(Enum):
    """What a judge is shown."""

    pairwise = "pairwise"  # two answers, scored against each other
    rating = "rating"  # one row of the data, rated by itself
    aspects = "aspects"  # one instruction, rated aspect by aspect


class ResponseFormat(Enum):
    """How an endpoint is held to the form of its replies."""

    json_schema = "json_schema"  # structured outputs: the endpoint can reply in no other form
    text = "text"  # the prompt alone asks for the form


class Dtype(Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ScorerDtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
