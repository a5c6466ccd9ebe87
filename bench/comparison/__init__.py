"""Which choice of rows is worth training on? Held-out answer loss of models, choice by choice.

    python -m bench.comparison --strategies cherry length_matched longest --other FILE \\
        data.path=FILE model.path=MODEL [any other settings of `cherry-vllm pipeline`]

The pool is the first ``--rows`` usable rows of ``data.path``, in any format that `score` reads.
Each strategy of ``conf/select/`` chooses from it, for each of the ``--seeds``, and a model is
trained on its choice as `pipeline` does; a seed decides the brief experience, the random rows and
the order of training. Two budgets make choices comparable: equal rows (``--fraction`` of the pool),
and equal answer tokens (as many as the choice of ``--tokens-of`` by rows has, or a number).

**Losses** are means over the answer tokens of held-out rows, in nats, with products in fp32: on
the next ``--held-out`` usable rows of the data, and on as many of ``--other``, data of another
kind. Rows with a question of the pool are left out and counted: the text before the last answer,
compared as ``select.dedup=exact`` compares it.

**Differences** are to random rows of the same budget, seed by seed. Their intervals (95%,
percentiles) come from a paired bootstrap of two levels: each of 10,000 draws takes held-out rows
and seeds with replacement, the same ones for both models, and averages the difference of the
losses over the seeds drawn. With one seed, only the rows are drawn. With few seeds, the interval is
too narrow rather than too wide.

Everything is kept in ``--run-dir``, and the same command resumes: also with more seeds, strategies
or budgets. A strategy that fails is reported, and the others go on. Once its losses are known, a
model is removed, unless ``--keep-models`` is given.

    comparison.md, .png, .json   the table, its picture, and all its numbers
    rows.parquet                 the loss of each held-out row under each model
    seed-0/cherry/               cherry.json: the chosen rows; pipeline.json: the stages
    run/                         what the choices share, as a run folder
"""
