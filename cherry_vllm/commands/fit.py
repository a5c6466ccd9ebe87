"""``cherry-vllm fit``: fits a linear rule to the losses of trained subsets."""

from pathlib import Path

from cherry_vllm.commands.inputs import Job, Outcome, find_output
from cherry_vllm.commands.summary import describe
from cherry_vllm.config import Config
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable
from cherry_vllm.selection.linear_rule import fit as fit_rule
from cherry_vllm.store.marks import marked_file

COMMAND = "fit"


def fit(config: Config, job: Job) -> Outcome:
    """Fits the rule and writes it as a selection strategy.

    Raises:
        UserError: the table is not given or cannot be used, or the output must not be replaced.
    """
    settings = config.fit
    if settings.table is None:
        raise UserError("fit.table: not given; add fit.table=... (a .csv or .parquet file)")
    output = find_output(job, "fit.output", settings.output)
    table = Path(settings.table)
    rule = fit_rule(table, settings.loss)
    facts = {"weights": rule.weights, "intercept": rule.intercept, "r_squared": rule.r_squared}
    with marked_file(output, {"made_by": COMMAND, **facts}) as path:
        rule.write(path, table, output.stem)
    print(describe("log loss", {"intercept": rule.intercept, **rule.weights}))
    print(f"R2 {rule.r_squared:.3f}, {rule.num_subsets} subsets")
    folder = output.parent.parent
    print(printable(f"{output}: use it with --config-dir {folder} select={output.stem}"))
    return Outcome(output, facts)
