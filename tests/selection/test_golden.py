"""The strategies of the first release choose the same rows as ever."""

import json
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.options import Order, Rule
from cherry_vllm.selection.ranking import select_rows
from tests.made_up import made_up_frame, named

# Made by the code of cb55cc2 from `made_up_frame`: strategy, sizes, order, rule, seed, rows.
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_choices.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "-".join(map(str, case[:-1])))
def test_the_same_rows_are_chosen_as_by_the_first_release(case: list[Any]) -> None:
    strategy, size, order, rule, seed, rows = case
    choice = named(strategy, **size, order=Order(order), rule=Rule(rule), seed=seed)
    assert select_rows(made_up_frame(), choice)["row"].to_list() == rows
    shuffled = made_up_frame().sample(fraction=1, shuffle=True, seed=1)
    assert select_rows(shuffled, choice)["row"].to_list() == rows
