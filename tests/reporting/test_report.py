"""`cherry-vllm report`: the numbers behind the figures, and the page in a real browser."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.report import report
from cherry_vllm.config import arguments_of, compose, prompt_of
from cherry_vllm.conversation import frame_messages, show_conversations, single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation import aspects, pairwise
from cherry_vllm.evaluation.pairwise import Judged
from cherry_vllm.evaluation.ratings import Rated
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.figures import results
from cherry_vllm.figures.figure import save_png
from cherry_vllm.figures.instructions import draw_landscape
from cherry_vllm.figures.models import draw_losses, find_points
from cherry_vllm.figures.scores import draw_ifd, draw_ledger, draw_length, draw_scores
from cherry_vllm.reporting.artifacts import find_aspects, find_jobs, find_losses, find_selection
from cherry_vllm.reporting.extremes import count_first_words, find_samples
from cherry_vllm.reporting.landscape import find_dominated, survey
from cherry_vllm.reporting.page import Page, render
from cherry_vllm.schema import LOGPROBS, ROWS
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.run import Extras, select_records
from cherry_vllm.selection.sides import Side, label_sides
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.scores import open_scores
from cherry_vllm.store.shards import Shards
from tests.browser import PHONE_WIDTH, Tab, find_browser, open_tab
from tests.conftest import ROWS as SHIPPED
from tests.conftest import Cli
from tests.judging import REVIEWS
from tests.made_up import named
from tests.made_up import scores as scores_of

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    '<img src="http://127.0.0.1:9/x.png" onerror="window.pwned = 1">',
    "{{ 7 * 7 }} <b>bold</b> & &amp; <!-- ${alert(1)}",
    "W" * 3000,
    "\u202eright to left? \u0627\u0643\u062a\u0628 \u0642\u0635\u0629",
    "\u5199\u4e00\u4e2a\u6545\u4e8b" * 200,
    "\U0001f327\ufe0f\U0001f469\u200d\U0001f680" * 100,
    "Please\nwrite\n\n\n\ta poem\u2028about \u0000 nothing",
]
FIGURES = {
    *("ledger", "ifd", "scores", "length", "landscape", "words"),
    *("aspects", "losses", "winning_score", "verdicts"),
}


def write_scores(run_dir: Path, instructions: list[str], ifds: list[float | None]) -> Shards:
    """A scored run as the stages leave it; a row without IFD has an empty answer."""
    number = list(range(len(ifds)))
    records = [{"instruction": text, "output": f"answer {text}"} for text in instructions]
    reasons = ["empty_answer" if ifd is None else None for ifd in ifds]
    frame = pl.DataFrame(
        {
            "row": number,
            "record": [json.dumps(record) for record in records],
            "messages": frame_messages(
                [
                    single_turn(text, text if row % 2 else "", f"answer {text}").messages
                    for row, text in enumerate(instructions)
                ]
            ),
            "tools": None,
            "drop_reason": reasons,
        },
        schema=ROWS,
    )
    rows = Shards(run_dir / "rows", {"files": ["data.jsonl"]})
    rows.write(0, frame)
    rows.close(1, num_rows=len(number), files=["data.jsonl"])
    lengths = [1 + 7 * row % 40 for row in number]
    floats = [
        None if ifd is None else ([-2 * ifd] * length, [-2.0] * length)
        for ifd, length in zip(ifds, lengths, strict=True)
    ]
    logprobs = pl.DataFrame(
        {
            "row": number,
            "conditioned_logprobs": [pair and [pair[0]] for pair in floats],
            "direct_logprobs": [pair and [pair[1]] for pair in floats],
            "truncated": [None if pair is None else False for pair in floats],
            "drop_reason": reasons,
        },
        schema=LOGPROBS,
    )
    config = compose()
    settings = {
        "prompt": prompt_of(config).as_json(),
        "engine": arguments_of(config.engine),
        "max_length": config.max_length,
    }
    scored = Shards(run_dir / "logprobs", settings)
    scored.write(0, logprobs)
    scored.close(1, versions={"python": "3"})
    aggregate(run_dir, rows, scored)
    return rows


def write_embeddings(run_dir: Path, rows: Shards, vectors: np.ndarray[Any, Any]) -> None:
    embeddings = Shards(run_dir / "embeddings", {"rows": rows.fingerprint})
    shard = rows.read(0).select("row", "drop_reason")
    embeddings.write(0, shard.with_columns(embedding=pl.Series(vectors.astype(np.float32))))
    embeddings.close(1)


def write_selection(run_dir: Path, folder: Path, strategy: str, fraction: float) -> None:
    choice = named(strategy, fraction=fraction)
    select_records(run_dir, folder / "cherry.json", choice)


def others(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifests of scores of other settings, and of a retry that gave other scores."""
    return [
        {**manifest, "fingerprint": "another"},
        {**manifest, "score": {**manifest["score"], "contents": "another"}},
    ]


def write_verdicts(folder: Path) -> None:
    results, judged = pairwise.find_results(folder), Judged(read_reviews([REVIEWS]))
    pairwise.conclude(results, judged, others=None, settings={})


def write_aspects(run_dir: Path, folder: Path) -> None:
    """Ratings of the run's rows: 8 and 2 throughout, by a judge that nobody asked."""
    names = list(compose("judge=aspects").judge.aspects)
    sides = aspects.highest_and_lowest(open_scores(run_dir).frame, fraction=0.05, count=None)
    high = pl.col("side") == "top"
    ratings = sides.with_columns(
        pl.lit(None, pl.String).alias("reason"),
        *(pl.when(high).then(8.0).otherwise(2.0).alias(name) for name in names),
    )
    summary = aspects.summarize(ratings, names)
    scores = open_scores(run_dir)
    settings = {"scores": scores.fingerprint, "contents": scores.contents}
    rated = Rated(ratings, Counter(), rows_with_markers=[])
    aspects.write(aspects.find_results(folder), rated, summary, settings=settings)


def write_losses(run_dir: Path, name: str, num_steps: int) -> None:
    folder = run_dir / "models" / name
    folder.mkdir(parents=True)
    steps = [
        {"step": step, "loss": 2 - step / 50, "learning_rate": 2e-5 / step}
        for step in range(1, num_steps + 1)
    ]
    pl.DataFrame(steps).write_csv(folder / "losses.csv")


def write_everything(run_dir: Path) -> None:
    """A sweep with all that a page shows, of hostile rows."""
    generator = np.random.default_rng(0)
    instructions = [f"{HOSTILE[row % len(HOSTILE)]} {row}" for row in range(120)]
    ifds: list[float | None] = [*generator.uniform(0.1, 1.2, 118).tolist(), None, None]
    rows = write_scores(run_dir, instructions, ifds)
    write_embeddings(run_dir, rows, generator.normal(size=(120, 8)))
    for strategy in ("cherry", "random"):
        for fraction in (0.05, 0.1, 0.2):
            name = f"select.fraction={fraction},select={strategy}"
            write_selection(run_dir, run_dir / name, strategy, fraction)
            write_verdicts(run_dir / name)
    write_aspects(run_dir, run_dir / "rated")
    write_losses(run_dir, "pre_experience-0123456789abcdef", 9)
    write_losses(run_dir, f"cherry-{'0123456789abcdef' * 6}", 70)


def run_report(run_dir: Path, *overrides: str) -> Path:
    """The stage in this process, which spares the start of another."""
    config = compose(f"run_dir='{run_dir}'", *overrides)
    outcome = report(config, Job(run_dir, is_sweep=False))
    return outcome.artifact


def values_of(spec: dict[str, Any], layer: int | None = None) -> list[dict[str, Any]]:
    part = spec if layer is None else spec["layer"][layer]
    values: list[dict[str, Any]] = spec["datasets"][part["data"]["name"]]
    return values


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a <b>folder & more"
    write_everything(folder)
    run_report(folder)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    browser = find_browser()
    if not browser:
        pytest.skip("needs a browser on PATH: chromium")
    with open_tab(browser, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, PHONE_WIDTH])
@pytest.mark.browser
@pytest.mark.slow
def test_a_real_browser_shows_the_page_whole(
    tab: Tab, run_dir: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    page = run_dir / "report.html"
    tab.open(page, width=width, scheme=scheme)
    # The window's own width: innerWidth would grow with a page that overflows on a phone.
    assert tab.run("document.scrollingElement.scrollWidth") <= width
    assert tab.run("innerWidth") == width
    boxes = tab.run(
        "[...document.querySelectorAll('[data-figure]')].map((place) => {"
        " const drawn = place.querySelector('svg, canvas').getBoundingClientRect();"
        " return [place.dataset.figure, drawn.width, drawn.height, drawn.left, drawn.right]; })"
    )
    assert {box[0] for box in boxes} == FIGURES
    for _, wide, high, left, right in boxes:
        assert wide > 250
        assert high > 90
        assert 0 <= left < right <= width
    wider = tab.run(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg'))"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML)"
    )
    assert wider == []
    assert tab.run("document.querySelector('h1').textContent") == run_dir.name
    assert tab.run("typeof window.pwned") == "undefined"
    assert tab.faults == []
    assert {url for url in tab.requests if not url.startswith("data:")} == {page.as_uri()}
    shot = tmp_path / "page.png"
    tab.screenshot(shot)
    assert shot.stat().st_size > 100_000
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(244, 245, 247)", "dark": "rgb(15, 18, 22)"}[scheme]


@pytest.mark.browser
@pytest.mark.slow
def test_the_figures_follow_the_colour_scheme(tab: Tab, run_dir: Path) -> None:
    tab.open(run_dir / "report.html", width=1280, scheme="light")
    first_bar = "document.querySelector('#ledger .mark-rect path').getAttribute('fill')"
    before = tab.run(first_bar)
    tab.set_scheme("dark")
    tab.wait("document.documentElement.dataset.drawn === 'dark'")
    assert tab.run(first_bar) != before
    drawn = "document.querySelectorAll('[data-figure] svg, [data-figure] canvas').length"
    assert tab.run(drawn) == len(FIGURES)


class Tags(HTMLParser):
    """The elements and the texts of a page, as an HTML parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs) or (
            tag == "link"
        )

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def landscape_of(html: str) -> list[dict[str, Any]]:
    """The points of the map, from the data that the page carries."""
    data = json.loads(html.split('id="data">')[1].split("</script>", maxsplit=1)[0])
    spec = data["specs"]["landscape"]
    return values_of(spec, 0) + values_of(spec, 1)


@pytest.mark.slow
def test_what_rows_hold_is_text_and_nothing_else(run_dir: Path) -> None:
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    tags = Tags(html)
    assert tags.found.count("script") == 3  # the figures' data, the library, the page's own
    assert not {"img", "b"} & set(tags.found)
    shown = "".join(tags.texts)
    assert run_dir.name in shown
    drawn = {line["instruction"] for line in landscape_of(html)}
    for text in HOSTILE[:3]:
        assert any(one.startswith(text) for one in drawn)
    rows = pl.read_parquet(next(run_dir.glob("rows/*/part-00000.parquet")))
    texts = show_conversations(rows)
    scores = pl.read_parquet(run_dir / "scores.parquet")
    usable = scores.filter(pl.col("drop_reason").is_null()).sort("ifd")["row"]
    for row in (usable[0], usable[-1]):
        assert texts["instruction"][row][:399] in shown


@pytest.mark.slow
def test_pictures_are_written_beside_the_page(run_dir: Path) -> None:
    pictures = {path.stem: path for path in (run_dir / "report").iterdir()}
    assert set(pictures) == FIGURES
    for path in pictures.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5_000


def test_the_ledger_and_the_histogram_account_for_every_row(tmp_path: Path) -> None:
    ifds = [0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0, 1.5, 40.0, None]
    write_scores(tmp_path, [f"do {row}" for row in range(10)], ifds)
    write_selection(tmp_path, tmp_path, "cherry", 0.3)
    scores = pl.read_parquet(tmp_path / "scores.parquet")
    (job,) = find_jobs(tmp_path, "cherry.json.meta.json")
    assert job.selection is not None
    held = open_scores(tmp_path)
    selection = find_selection(tmp_path / "cherry.json.meta.json", held)
    assert selection is not None
    for manifest in others(held.manifest):
        other = replace(held, manifest=manifest)
        assert find_selection(tmp_path / "cherry.json.meta.json", other) is None
    assert selection.cut == pytest.approx(0.95)

    steps = values_of(draw_ledger(scores, selection).spec(500))
    sizes = [(step["step"].split(" \u00b7 ")[0], step["end"] - step["start"]) for step in steps]
    assert sizes == [
        ("rows read", 10),
        ("empty answer", 1),
        ("IFD above 1", 2),
        ("usable", 7),
        ("selected", 2),
    ]
    assert [step["end"] for step in steps] == [10, 10, 9, 7, 2]

    figure = draw_ifd(scores, selection, {"2 rows": 0.95})
    counts: dict[str, int] = {}
    for line in values_of(figure.spec(500), 0):
        counts[line["status"]] = counts.get(line["status"], 0) + line["rows"]
        assert line["start"] >= 1 or line["status"] != "IFD above 1"
    assert counts == {"selected": 2, "usable": 5, "IFD above 1": 2}
    assert "0.950 (2 rows)" in figure.caption


@pytest.mark.parametrize("ifds", [(None, None), (0.5,), (0.5, 0.9, 1.2, 40.0)])
def test_a_picture_comes_of_any_scores(ifds: tuple[float | None, ...], tmp_path: Path) -> None:
    scores = scores_of(*ifds, reason="empty_answer")
    save_png(tmp_path / "ifd.png", draw_ifd(scores), draw_scores(scores))
    save_png(tmp_path / "rest.png", draw_ledger(scores, None))
    save_png(tmp_path / "length.png", draw_length(scores))
    for picture in tmp_path.iterdir():
        assert picture.stat().st_size > 10_000


def test_the_correlation_with_length_is_stated() -> None:
    scores = scores_of(*(row / 100 for row in range(1, 80)), None, 1.3, reason="malformed")
    rising = scores.with_columns(num_answer_tokens=pl.col("row").cast(pl.UInt32) + 1)
    assert "over the 79 usable rows: +1.000" in draw_length(rising).caption
    assert "not defined" in draw_length(scores).caption  # all answers have one length


def test_sides_hold_the_fraction_and_never_overlap() -> None:
    scores = scores_of(*(row / 100 for row in range(100)), 1.5, None, reason="malformed")
    ranked = label_sides(scores, fraction=0.05)
    assert ranked.height == 100
    assert ranked.filter(side="top")["row"].to_list() == [99, 98, 97, 96, 95]
    assert ranked.filter(side="least")["row"].to_list() == [4, 3, 2, 1, 0]
    sizes = {
        count: label_sides(scores_of(*[0.5] * count), fraction=0.5)["side"].value_counts().rows()
        for count in (0, 1, 3)
    }
    assert sizes[0] == []
    assert sizes[1] == [("others", 1)]
    assert sorted(sizes[3]) == [("least", 1), ("others", 1), ("top", 1)]


def test_first_words_skip_courtesies_and_count_per_side() -> None:
    top = ["Write a poem", "please WRITE one", "Could you kindly write it", "Translate"]
    least = ["\u00c9dite cela", "\u5199\u6545\u4e8b", "\U0001f327", "Please", "Others"]
    frame = pl.DataFrame({"side": ["top"] * 4 + ["least"] * 5, "request": top + least})
    found = {
        (line["side"], line["word"]): line["share"]
        for line in count_first_words(frame).iter_rows(named=True)
    }
    assert found == {
        ("top", "write"): 0.75,
        ("top", "translate"): 0.25,
        ("least", "\u00e9dite"): 0.2,
        ("least", "\u5199\u6545\u4e8b"): 0.2,
        ("least", "please"): 0.2,
        ("least", "others"): 0.2,
    }


def test_samples_come_from_both_ends_and_the_middle(tmp_path: Path) -> None:
    rows = write_scores(tmp_path, [f"{'x' * 500} {row}" for row in range(9)], [0.1] * 9)
    scores = scores_of(*(row / 10 for row in range(1, 10)))
    samples = find_samples(label_sides(scores, fraction=0.1), rows.scan(), 2)
    assert {name: [one.row for one in found] for name, found in samples.items()} == {
        "highest": [8, 7],
        "middle": [5, 4],
        "lowest": [0, 1],
    }
    assert len(samples["highest"][0].answer) == 400
    assert samples["highest"][0].answer.endswith("x\u2026")
    assert find_samples(label_sides(scores.head(2), fraction=0.1), rows.scan(), 2) == {}


@pytest.mark.slow
def test_the_map_tells_the_clouds_of_either_side_apart(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ifds = [*generator.uniform(0.1, 0.2, 30), *generator.uniform(0.8, 0.9, 30)]
    rows = write_scores(tmp_path, [f"task {row}" for row in range(60)], ifds)
    centres = np.repeat([[9.0] * 60, [-9.0] * 60], 30, axis=0)
    write_embeddings(tmp_path, rows, centres + generator.normal(size=(60, 60)))
    ranked = label_sides(pl.read_parquet(tmp_path / "scores.parquet"), fraction=0.2)
    embeddings = pl.scan_parquet(tmp_path / "embeddings" / "*" / "part-*.parquet")
    options = {"num_clusters": 2, "seed": 0}
    landscape = survey(ranked, embeddings, rows.scan(), max_rows=60, **options)
    assert landscape is not None
    again = survey(ranked, embeddings, rows.scan(), max_rows=60, **options)
    assert again is not None
    assert landscape.equals(again)
    is_high = pl.col("row") >= 30
    middles = landscape.group_by(is_high).agg(pl.col("x", "y").mean()).drop("row")
    gap = math.dist(*middles.iter_rows())
    for _, cloud in landscape.group_by(is_high):
        assert np.std(cloud["x"].to_numpy()) < gap / 2
    top, least = find_dominated(landscape)
    assert (top.side, top.num_top, top.num_least) == (Side.TOP, 12, 0)
    assert (least.side, least.num_top, least.num_least) == (Side.LEAST, 0, 12)
    highest = ranked.head(3)["row"].to_list()
    assert top.examples == [f"task {row}" for row in highest]
    lowest = ranked.tail(3)["row"].reverse().to_list()
    assert least.examples == [f"task {row}" for row in lowest]
    few = survey(ranked, embeddings, rows.scan(), max_rows=9, **options)
    assert few is None


@pytest.mark.slow
def test_a_sweep_joins_verdicts_to_selections(run_dir: Path) -> None:
    jobs = find_jobs(run_dir, "cherry.json.meta.json")
    assert len(jobs) == 6
    usable = pl.read_parquet(run_dir / "scores.parquet")["drop_reason"].null_count()
    points = find_points(jobs)
    assert points.select("series", "rows").rows() == [
        (series, usable * percent // 100)
        for series in ("cherry", "random")
        for percent in (5, 10, 20)
    ]
    expected = read_json(next(run_dir.glob("*/judge.json")))["figures"][0]
    assert set(points["score"]) == {expected["winning_score"]}
    assert points.row(0)[3:] == tuple(expected["interval"])
    losses = find_losses(run_dir)
    assert losses["model"].value_counts().sort("count")["count"].to_list() == [9, 70]
    assert draw_losses(losses).key.keys() == set(losses["model"])


def test_a_selection_by_rating_is_found_without_its_ratings(tmp_path: Path) -> None:
    write_scores(tmp_path, ["a", "b", "c", "d"], [0.1, 0.5, 0.9, 0.3])
    ratings = tmp_path / "ratings.parquet"
    pl.DataFrame({"row": [0, 1, 2, 3], "rating": [5.0, 2.0, 4.5, None]}).write_parquet(ratings)
    job = tmp_path / "job"
    extras = Extras(ratings=ratings)
    select_records(tmp_path, job / "cherry.json", named("rating", fraction=None), extras=extras)
    meta, scores = job / "cherry.json.meta.json", open_scores(tmp_path)
    found = find_selection(meta, scores)
    assert found
    assert found.rows["row"].to_list() == [0, 2]
    assert found.cut is None
    ratings.unlink()
    assert find_selection(meta, scores)


@pytest.mark.parametrize("harm", ["edited", "deleted"])
def test_a_selection_that_was_changed_is_left_out(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_scores(tmp_path, ["a", "b", "c", "d"], [0.1, 0.5, 0.9, 0.3])
    write_selection(tmp_path, tmp_path, "cherry", 0.5)
    output = tmp_path / "cherry.json"
    output.unlink()
    if harm == "edited":
        output.write_text("[]")
    assert find_selection(tmp_path / "cherry.json.meta.json", open_scores(tmp_path)) is None
    assert "cherry.json: edited or deleted since `select` wrote it" in caplog.text


@pytest.mark.parametrize("name", ["report.html", "report/mine.png"])
def test_a_page_that_is_not_ours_is_never_replaced(tmp_path: Path, name: str) -> None:
    write_verdicts(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="choose another output or move it"):
        run_report(tmp_path)
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert len(list((tmp_path / name).parent.glob("*.png"))) == (name != "report.html")


@pytest.mark.slow
def test_answers_called_cherry_are_no_selection(tmp_path: Path) -> None:
    write_verdicts(tmp_path / "judged")
    write_json(tmp_path / "judged" / "cherry.json.meta.json", {"questions": 16})
    (job,) = find_jobs(tmp_path, "cherry.json.meta.json")
    assert (job.name, job.selection) == ("judged", None)
    assert run_report(tmp_path).is_file()


@pytest.mark.slow
def test_aspects_of_other_scores_are_not_shown(run_dir: Path) -> None:
    scores = open_scores(run_dir)
    found = find_aspects(run_dir, scores)
    assert found
    assert {side: set(found[side]["means"].values()) for side in found} == {
        "top": {8.0},
        "least": {2.0},
    }
    for manifest in others(scores.manifest):
        assert find_aspects(run_dir, replace(scores, manifest=manifest)) is None


@pytest.mark.parametrize(
    ("name", "series"),
    [
        (".", "cherry"),
        ("select=cherry,select.fraction=0.05", "cherry"),
        ("sample=none,seed=1,select.count=7", "cherry, sample=none, seed=1"),
        ("7b/select.num_tokens=9", "cherry, 7b"),
    ],
)
def test_a_series_is_what_jobs_differ_in_besides_their_size(name: str, series: str) -> None:
    assert results.JobResult(name, {"strategy": "cherry"}, {}).series == series


@pytest.mark.slow
def test_a_moved_run_of_the_whole_method_is_found(tmp_path: Path) -> None:
    made, moved = tmp_path / "made", tmp_path / "elsewhere" / "moved"
    write_scores(made / "scores" / "base", ["a", "b", "c"], [0.1, 0.5, 0.9])
    write_losses(made, "cherry-0", 3)
    write_losses(made, "cherry-1", 3)  # of a run that was given up
    stages = [
        {"stage": "score", "artifact": str(made / "scores" / "base" / "scores.parquet")},
        {"stage": "train cherry", "artifact": str(made / "models" / "cherry-0")},
    ]
    write_json(made / "pipeline.json", {"config": {"run_dir": str(made)}, "stages": stages})
    moved.parent.mkdir()
    shutil.move(made, moved)
    page = run_report(moved)
    drawn = {path.stem for path in page.with_suffix("").iterdir()}
    assert drawn == {"ledger", "ifd", "scores", "length", "words", "losses"}
    assert find_losses(moved)["model"].unique().to_list() == ["cherry-0"]


@pytest.mark.slow
def test_a_hundred_thousand_rows_stay_under_five_megabytes() -> None:
    number = np.arange(100_000)
    generator = np.random.default_rng(0)
    ifds = generator.uniform(0.1, 1.1, number.size)
    base = scores_of(0.5)
    scores = base.select(pl.all().repeat_by(number.size).explode()).with_columns(
        row=pl.Series(number),
        ifd=pl.Series(ifds),
        direct_score=pl.Series(generator.uniform(1, 5, number.size)),
        num_answer_tokens=pl.Series(number % 700 + 1, dtype=pl.UInt32),
    )
    # As many points as a map may have, with the longest names that tooltips show.
    landscape = label_sides(scores, fraction=0.05).head(5_000)
    landscape = landscape.with_columns(
        x=pl.col("direct_score"),
        y=pl.col("ifd"),
        cluster=pl.lit(3),
        instruction=pl.lit("\U0001f469<" * 50),
    )
    page = Page(name="big", fraction=0.05)
    page.draw(draw_ledger(scores, None))
    for draw in (draw_ifd, draw_scores, draw_length):
        figure = draw(scores)
        page.draw(figure)
    assert "A random sample of 5,000 of 100,000" in page.figures["scores"].caption
    page.draw(draw_landscape(landscape, scores.height, 0.05))
    assert "A random sample of 5,000 of 100,000" in page.figures["landscape"].caption
    html = render(page)
    assert len(html.encode()) < 5_000_000


@pytest.mark.engine
@pytest.mark.process
def test_a_scored_run_becomes_a_page_that_says_what_it_lacks(
    tiny: Path, cli: Cli, tmp_path: Path
) -> None:
    place = f"run_dir={tmp_path}"
    settings = ["engine=hf", "engine.dtype=float32", "max_length=96"]
    done = cli("score", f"data.path={SHIPPED}", f"model.path={tiny}", place, *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ifd.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    reported = cli("report", place)
    assert reported.returncode == 0, reported.stderr
    commands = [
        line.split("; ")[1].split()[1] for line in reported.stdout.splitlines() if "; " in line
    ]
    assert commands == ["select", "embed", "judge", "train", "judge"]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"cherry-vllm embed data.path={SHIPPED} model.path=... {place}" in html
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_verdicts_alone_make_a_page(tmp_path: Path) -> None:
    write_verdicts(tmp_path)
    page = run_report(tmp_path)
    assert [path.name for path in page.with_suffix("").iterdir()] == ["verdicts.png"]
    assert "cherry-vllm score" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["nothing to report on", "cherry-vllm score"]),
        (["run_dir=/no/run"], ["run_dir=/no/run", "no such folder"]),
        (["scores_dir=/no/scores"], ["scores_dir=/no/scores", "no scores.parquet"]),
        (["report.fraction=0.6"], ["report.fraction=0.6", "0.5"]),
        (["report.max_embeddings=3"], ["report.max_embeddings=3", "at least 10"]),
    ],
)
def test_a_mistake_costs_one_line_and_leaves_nothing(
    tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        run_report(tmp_path, *overrides)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)
    assert list(tmp_path.iterdir()) == []
