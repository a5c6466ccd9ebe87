"""What ``--help`` prints: a screen for the command, and a screen for each stage."""

from typing import NamedTuple


class Stage(NamedTuple):
    """What a stage does, a command that shows it, and the keys that people use most."""

    summary: str
    example: str
    keys: dict[str, str]
    words: tuple[str, ...] = ()  # keys whose values may be given alone, in this order


DATA = {
    "data.path": "file, glob, hf:// path, or a list of these",
    "data": "shape: auto (default), alpaca, messages, ...",
    "data.max_rows": "read only this many rows",
}
MODEL = {
    "model.path": "model folder, LoRA adapter, or the hub id of either",
    "prompt": "template: alpaca, chat, vicuna or wizardlm",
    "max_length": "tokens of prompt and answer (512)",
}
ENGINE = {
    "engine": "vllm_fused (default), vllm, vllm_server or hf",
    "executor.num_workers": "worker processes (one per GPU)",
}
RUN = {"run_dir": "folder of all results (runs/cherry)"}

STAGES = {
    "pipeline": Stage(
        "Runs the whole method; skips stages whose results exist.",
        "cherry-vllm pipeline data.path=alpaca.json model.path=meta-llama/Llama-2-7b-hf",
        DATA
        | MODEL
        | {
            "+experiment": "settings of the paper: alpaca_7b or wizardlm_7b",
            "sample": "rows to learn first: kmeans, difficulty, random or none",
            "select.fraction": "share of the usable rows to select (0.1)",
        }
        | ENGINE
        | RUN,
    ),
    "embed": Stage(
        "Embeds the prompts, and measures their perplexity.",
        "cherry-vllm embed data.path=alpaca.json model.path=meta-llama/Llama-2-7b-hf",
        DATA | MODEL | ENGINE | RUN,
    ),
    "sample": Stage(
        "Samples the rows of the pre-experienced model.",
        "cherry-vllm sample data.path=alpaca.json model.path=meta-llama/Llama-2-7b-hf",
        DATA
        | MODEL
        | {
            "sample": "kmeans (default), difficulty or random",
            "sample.count": "rows in all (1000)",
            "sample.num_clusters": "clusters of sample=kmeans (100)",
            "seed": "for everything random (0)",
        }
        | RUN,
    ),
    "train": Stage(
        "Fine-tunes a model on a data set.",
        "cherry-vllm train data.path=cherry.json model.path=meta-llama/Llama-2-7b-hf",
        DATA
        | MODEL
        | {
            "train.num_epochs": "epochs (3)",
            "train.learning_rate": "peak learning rate (2e-5)",
            "train.global_batch_size": "rows per optimizer step (128)",
            "train.lora_rank": "above 0: train adapters of this rank (0)",
        }
        | RUN,
    ),
    "check": Stage(
        "Compares the engine with transformers; forecasts a run.",
        "cherry-vllm check data.path=alpaca.json model.path=Qwen/Qwen2.5-0.5B",
        DATA | MODEL | ENGINE | {"check.count": "rows that both score (32; 1024 on a GPU)"} | RUN,
    ),
    "score": Stage(
        "Scores rows by Instruction-Following Difficulty (IFD).",
        "cherry-vllm score data.path=alpaca.json model.path=Qwen/Qwen2.5-0.5B",
        DATA | MODEL | ENGINE | {"refusals": "wizardlm: drop answers that refuse (none)"} | RUN,
    ),
    "select": Stage(
        "Selects rows of a scored run.",
        "cherry-vllm select run_dir=runs/alpaca select.fraction=0.05",
        {
            "select": "strategy: cherry (default), random, rating, superfilter, ...",
            "select.where": "condition, as in 'num_answer_tokens between 20 and 400'",
            "select.rank": "what comes first, as in '0.7 * ifd + 0.3 * rating'",
            "select.fraction": "share of the rows that meet it (0.1)",
            "select.count": "a number of rows; takes precedence over the fraction",
            "select.output": "cherry.json, or .jsonl, .parquet, or a folder",
        }
        | RUN,
    ),
    "fit": Stage(
        "Fits a linear rule to the losses of trained subsets.",
        "cherry-vllm fit fit.table=subsets.csv run_dir=runs/alpaca",
        {
            "fit.table": "a line for each trained subset: loss, mean of each indicator",
            "fit.loss": "the column of the losses (loss)",
            "fit.output": "the strategy (strategies/select/fitted.yaml)",
        }
        | RUN,
    ),
    "compare-selections": Stage(
        "Compares two selections: what each of them prefers.",
        "cherry-vllm compare-selections cherry.json longest.json run_dir=runs/alpaca",
        {
            "compare.output": "a .json file for all numbers (none)",
            "compare.num_examples": "rows to print that only one of them has (3)",
            "select.strata": "count rows by these expressions ([]), in select.bins",
        }
        | RUN,
        words=("compare.first", "compare.second"),
    ),
    "generate": Stage(
        "Lets a model answer a test set.",
        "cherry-vllm generate testset=vicuna testset.path=question.jsonl model.path=m",
        {
            "testset.path": "file of questions",
            "testset": "file, koala, lima, sinstruct, vicuna or wizardlm",
        }
        | MODEL
        | {
            "generate.temperature": "0 (default): greedy",
            "generate.output": "file of answers (answers.jsonl)",
        }
        | RUN,
    ),
    "judge": Stage(
        "Has a judge compare two models' answers, or rate texts.",
        "cherry-vllm judge judge.first=a.jsonl judge.second=b.jsonl judge.model=gpt-4o",
        {
            "judge": "pairwise (default), rating or aspects",
            "judge.first": "answers of the first model",
            "judge.second": "answers of the second model",
            "judge.model": "the judge, as the endpoint calls it",
            "judge.base_url": "an endpoint that speaks OpenAI's protocol",
            "judge.api_key_env": "variable that holds the key (OPENAI_API_KEY)",
            "judge.reviews": "recorded reviews instead of an endpoint",
        }
        | RUN,
    ),
    "report": Stage(
        "Shows a run as one page with its pictures.",
        "cherry-vllm report run_dir=runs/alpaca",
        {
            "report.fraction": "share of the rows at the top and at the bottom (0.05)",
            "report.num_examples": "rows to read of each kind (3)",
        }
        | RUN,
    ),
    "fetch-demo": Stage(
        "Fetches the demo's checkpoint and data.",
        "cherry-vllm fetch-demo",
        {"demo.cache_dir": "where they are kept (~/.cache/cherry-vllm)"},
    ),
}

EXIT_CODES = "exit codes: 0 done; 1 internal error, or check failed; 2 a mistake; 128+N signal"

HYDRA_HELP = """\
usage: cherry-vllm STAGE [flag ...] [key=value ...]

Hydra reads the keys and the flags. These flags work here:

  -m, --multirun            run a job for each value: key=a,b
  -c, --cfg job|hydra|all   print the stage's settings, Hydra's, or both
      --resolve             with --cfg job: print values in place of ${...}
  -p, --package PART        with --cfg: print only a part, as in -p select
  -i, --info WHAT           print defaults, defaults-tree, config, plugins,
                            searchpath or all
  -cd, --config-dir FOLDER  add the files of your own folder
  -cn, --config-name NAME   start from FOLDER/NAME.yaml instead of config.yaml

Groups of Hydra's own: hydra/launcher, hydra/sweeper, hydra/job_logging.
Hydra's manual: https://hydra.cc/docs/1.3/intro"""


def command_help() -> str:
    """The text of ``cherry-vllm --help``."""
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:<{width}}  {stage.summary}" for name, stage in STAGES.items())
    return f"""\
usage: cherry-vllm STAGE [key=value ...]
Scores instruction data by Instruction-Following Difficulty, and selects rows.

stages:
{stages}

example: cherry-vllm score data.path=alpaca.json model.path=Qwen/Qwen2.5-0.5B

STAGE --help: its most used keys; --hydra-help: flags; docs/usage.md: all keys
TAB completes words after: eval "$(cherry-vllm -sc install=bash)"
verbose=true shows the libraries' log, and the traceback of an internal error
{EXIT_CODES}"""


def stage_help(name: str) -> str:
    """The text of ``cherry-vllm STAGE --help``."""
    stage = STAGES[name]
    width = max(map(len, stage.keys)) + 1
    keys = "\n".join(f"  {key + '=':<{width}}  {text}" for key, text in stage.keys.items())
    return f"""\
usage: cherry-vllm {name} [key=value ...]
{stage.summary}

example:
  {stage.example}

most used keys:
{keys}

all keys: cherry-vllm {name} --cfg job, explained in docs/usage.md
several values: -m key=value1,value2; your own files: --config-dir FOLDER
{EXIT_CODES}"""
