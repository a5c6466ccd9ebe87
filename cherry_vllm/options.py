"""The named choices that the configuration and the packages below it share."""

from enum import Enum


class DataFormat(Enum):
    auto = "auto"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"
    arrow = "arrow"


class Turns(Enum):
    """Which answers of a conversation are scored."""

    all = "all"
    first = "first"
    last = "last"


class Sampling(Enum):
    """Which rows the pre-experienced model learns from."""

    kmeans = "kmeans"  # a few of every cluster of instructions: the paper's first strategy
    difficulty = "difficulty"  # the highest IFD under the base model: the paper's second
    random = "random"
    none = "none"  # no experience: the base model itself scores


class Pool(Enum):
    """Which rows a selection chooses from."""

    usable = "usable"  # those without a drop reason
    scored = "scored"  # also those with an IFD above 1


class Dedup(Enum):
    """When two rows are duplicates."""

    exact = "exact"  # their texts are equal but for case and spaces
    minhash = "minhash"  # their texts share most of their short runs of words


class DedupOn(Enum):
    """The part of a row that duplicates have in common."""

    instruction = "instruction"
    answer = "answer"


class Diversify(Enum):
    """How diverse rows are chosen among the best."""

    facility_location = "facility_location"  # so that all candidates have a similar row
    k_center = "k_center"  # so that no candidate is far from all


class Order(Enum):
    """The order of the chosen rows in the output."""

    input = "input"
    ifd = "ifd"  # highest first


class Rule(Enum):
    """How counts are rounded and ties broken: our rule, or one of the reference's two scripts."""

    exact = "exact"
    data_by_ifd = "data_by_ifd"
    select_from_ifd_json = "select_from_ifd_json"


class Mode(Enum):
    """What a judge is shown."""

    pairwise = "pairwise"  # two answers, scored against each other
    rating = "rating"  # one row of the data, rated by itself
    aspects = "aspects"  # one instruction, rated aspect by aspect


class ResponseFormat(Enum):
    """How an endpoint is made to reply in the expected form."""

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
