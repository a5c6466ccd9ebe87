"""How well IFD finds rows that somebody else chose, compared with the answer's length alone.

    python -m bench.labels --run-dir RUN --labels FILE --label KEY

``--labels`` is a JSON Lines file with one true or false under ``--label`` for each input row, in
the order of the data. The area under the ROC curve is over the usable rows.
"""

import argparse
from pathlib import Path

import polars as pl
from sklearn.metrics import roc_auc_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--label", required=True)
    arguments = parser.parse_args()
    scores = pl.read_parquet(arguments.run_dir / "scores.parquet")
    labels = pl.read_ndjson(arguments.labels)[arguments.label]
    usable = scores.with_columns(label=labels).filter(pl.col("drop_reason").is_null())
    print(f"{usable.height} usable rows of {scores.height}, {usable['label'].sum()} labelled")
    for column in ("ifd", "conditioned_score", "direct_score", "num_answer_tokens"):
        print(f"AUC of {column:<20}{roc_auc_score(usable['label'], usable[column]):.3f}")


if __name__ == "__main__":
    main()
