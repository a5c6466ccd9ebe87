"""Servers as an engine, against stand-ins that fail in the ways of servers and proxies.

What a real server answers is tested in ``tests/commands/test_score_servers.py``.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.score import score as run_score
from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import Decoding, Span, build_embedder, build_engine, build_generator
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.served import ServedModel, find_served
from cherry_vllm.engines.settings import ServerSettings
from cherry_vllm.errors import UserError
from tests.conftest import start
from tests.engines.stand_in import StandIn, expected, refusal
from tests.fakes import InlineExecutor, write_checkpoint
from tests.judge_server import Fault
from tests.judging import KEY
from tests.runs import DEADLY, command, write_rows

pytestmark = pytest.mark.process  # stand-ins that serve HTTP

MAX_LENGTH = 512
SPANS = [Span.from_start([5, 6 + n, 7, 8 + n], 2) for n in range(20)]
SPANS.append(Span(list(range(10, 40)), ((3, 6), (20, 30))))  # a conversation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture
def open_server(folder: Path) -> Iterator[Callable[..., StandIn]]:
    """Opens stand-ins, which are stopped after the test."""
    opened: list[StandIn] = []

    def open_one(port: int = 0) -> StandIn:
        opened.append(StandIn(folder, port))
        return opened[-1]

    yield open_one
    for server in opened:
        server.stop()


def settings_for(*urls: str, **changes: Any) -> ServerSettings:
    quick = {"max_tries": 1, "timeout_s": 5, "patience_s": 1, "concurrency": 4} | changes
    words = [f"engine.{key}={value}" for key, value in quick.items()]
    config = compose(
        "engine=vllm_server", "engine.model=m", f"engine.base_url=[{','.join(urls)}]", *words
    )
    settings = engine_settings(config.engine)
    assert isinstance(settings, ServerSettings)
    return settings


def meet(folder: Path, settings: ServerSettings, *servers: StandIn) -> ServedModel:
    """Finds the served model, and tells the stand-ins which prompt is the probe."""
    model = find_served(str(folder), settings, num_tokens=MAX_LENGTH + 1, trust_remote_code=False)
    for server in servers:
        server.probe = list(model.probe)
        server.bodies.clear()
    return model


def score(settings: ServerSettings, model: ServedModel, spans: list[Span] = SPANS) -> list[Any]:
    engine = build_engine(settings, model, max_length=MAX_LENGTH, trust_remote_code=False)
    counts: list[int] = []
    found = engine.logprobs(spans, counts.append)
    assert sum(counts) == len(spans)
    return found


def assert_scored(found: list[Any], salt: int = 0) -> None:
    for span, floats in zip(SPANS, found, strict=True):
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats, expected(span, salt))


# --- what is asked and returned ------------------------------------------------------------------


@pytest.mark.parametrize("offers_chosen", [False, True])
@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_answer_tokens_get_their_log_probs(
    folder: Path, open_server: Callable[..., StandIn], ending: str, *, offers_chosen: bool
) -> None:
    server = open_server()
    server.offers_chosen = offers_chosen
    settings = settings_for(server.url + ending)
    assert_scored(score(settings, meet(folder, settings, server)))
    keys = {"token_ids"} if offers_chosen else {"prompt"}
    assert all(keys <= set(body) for body in server.bodies)
    assert len(server.bodies) == len(SPANS)


def test_what_json_cannot_write_is_told_from_a_number(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    model = meet(folder, settings, server)
    clamped = '{"choices": [{"prompt_logprobs": [null, {"6": {"logprob": -9999.0}}]}]}'
    server.script = lambda _: Fault(body=clamped)
    ((value,),) = score(settings, model, [Span.from_start([5, 6], 1)])
    assert value == -np.inf
    server.script = lambda _: refusal("Out of range float values are not JSON compliant: nan")
    ((value,),) = score(settings, model, [Span.from_start([5, 6], 1)])
    assert np.isnan(value)


@pytest.mark.parametrize(
    "answer",
    [
        '{"choices": [{"prompt_logprobs": [null, {"7": {"logprob": -1.0}}]}]}',
        '{"choices": [{"prompt_logprobs": [null]}]}',
        '{"choices": [{"prompt_logprobs": null}]}',
        '{"choices": []}',
        "[]",
        "<html>",
    ],
)
def test_log_probs_of_other_tokens_are_refused(
    folder: Path, open_server: Callable[..., StandIn], answer: str
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    model = meet(folder, settings, server)
    server.script = lambda _: Fault(body=answer)
    with pytest.raises(RuntimeError, match="refuses a sequence: "):
        score(settings, model, [Span.from_start([5, 6], 1)])


def test_an_array_for_another_prompt_is_refused(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    server.offers_chosen = True
    settings = settings_for(server.url)
    model = meet(folder, settings, server)
    server.script = lambda _: Fault(body='{"prompt_token_ids": [5], "choices": []}')
    with pytest.raises(RuntimeError, match="tokens that were not sent"):
        score(settings, model, [Span.from_start([5, 6], 1)])


def test_answers_are_asked_for_with_every_parameter_of_ours(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    model = meet(folder, settings, server)
    generator = build_generator(
        settings,
        model,
        max_length=MAX_LENGTH,
        trust_remote_code=False,
        decoding=Decoding(0.5, 0.9, 10, 3),
        stop_ids=[1],
    )
    found = generator.generate([[5], [6, 7]], lambda _: None, seed=3)
    assert found == [([7, 8], True)] * 2
    body = next(body for body in server.bodies if body["prompt"] == [6, 7])
    asked = ("temperature", "top_p", "top_k", "seed", "max_tokens", "stop_token_ids")
    assert [body[name] for name in asked] == [0.5, 0.9, 10, 4, 3, [1]]
    assert body["repetition_penalty"] == 1  # else the model's own default


# --- servers that fail ---------------------------------------------------------------------------

SOON = {"Content-Type": "application/json", "Retry-After": "0.02"}
PASSING = {
    "408": Fault(408, "{}", SOON),
    "409": Fault(409, "{}", SOON),
    "429": Fault(429, "{}", SOON),
    "500": Fault(500, "oops", {"Content-Type": "text/plain", "Retry-After": "0.02"}),
    "502": Fault(502, "<html>", {"Content-Type": "text/html", "Retry-After": "0.02"}),
    "503": Fault(503, "{}", SOON),
    "504": Fault(504, "{}", SOON),
    "no reply": Fault(delay_s=0.8),
    "half a reply": Fault(missing_bytes=10),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_costs_no_sequence(
    folder: Path, open_server: Callable[..., StandIn], name: str
) -> None:
    server, met = open_server(), threading.Event()

    def script(_: list[int]) -> Fault | None:
        if met.is_set():
            return None
        met.set()
        return PASSING[name]

    settings = settings_for(server.url, max_tries=2, timeout_s=0.4)
    model = meet(folder, settings, server)
    server.script = script
    assert_scored(score(settings, model))
    assert met.is_set()


@pytest.mark.parametrize("status", [400, 500])
def test_what_one_server_refuses_another_may_answer(
    folder: Path, open_server: Callable[..., StandIn], status: int
) -> None:
    servers = [open_server(), open_server()]
    settings = settings_for(*(server.url for server in servers))
    model = meet(folder, settings, *servers)
    servers[0].script = lambda _: refusal("CUDA error", status)
    assert_scored(score(settings, model))


def test_a_sequence_that_all_refuse_is_the_engines_failure(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    servers = [open_server(), open_server()]
    settings = settings_for(*(server.url for server in servers))
    model = meet(folder, settings, *servers)
    for server in servers:
        server.script = lambda ids: refusal("bad luck", 500) if ids == SPANS[3].token_ids else None
    with pytest.raises(RuntimeError, match=r"refuses a sequence: HTTP 500.*bad luck"):
        score(settings, model)
    for server in servers:
        assert any(body["prompt"] == SPANS[3].token_ids for body in server.bodies)


def test_servers_share_even_a_call_that_one_could_take_whole(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    servers = [open_server(), open_server()]
    settings = settings_for(*(server.url for server in servers), concurrency=len(SPANS))
    model = meet(folder, settings, *servers)
    servers[1].probe_delay_s = 0.2  # so it is checked later
    for server in servers:
        server.script = lambda _: time.sleep(1)
    assert_scored(score(settings, model))
    assert min(len(server.bodies) for server in servers) >= len(SPANS) // 3


def test_the_work_of_a_server_that_dies_goes_to_the_others(
    folder: Path, open_server: Callable[..., StandIn], caplog: pytest.LogCaptureFixture
) -> None:
    servers = [open_server(), open_server()]
    settings = settings_for(*(server.url for server in servers))
    model = meet(folder, settings, *servers)
    died = threading.Event()

    def die(_: list[int]) -> Fault:
        if not died.is_set():
            died.set()
            threading.Thread(target=servers[0].stop).start()
        return Fault(missing_bytes=10)

    servers[0].script = die
    assert_scored(score(settings, model))
    assert died.is_set()
    assert f"{servers[0].url}: no connection" in caplog.text


def test_a_server_that_comes_back_works_again(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url, patience_s=20)
    model = meet(folder, settings, server)
    server.stop()
    late: list[StandIn] = []

    def come_back() -> None:
        late.append(open_server(server.server_port))
        late[0].probe = list(model.probe)

    timer = threading.Timer(1, come_back)
    timer.start()
    assert_scored(score(settings, model))
    timer.join()
    assert len(late[0].bodies) == len(SPANS)


def test_a_server_that_comes_back_with_another_model_ends_the_run(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url, patience_s=20)
    model = meet(folder, settings, server)
    server.salt = 1
    with pytest.raises(UserError, match=r"another model than the one this run began with.*nats"):
        score(settings, model)


def test_a_model_that_changes_within_a_shard_without_a_fault_is_noticed_at_its_end(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    model = meet(folder, settings, server)

    def change(_: list[int]) -> None:
        server.salt = 1

    server.script = change
    with pytest.raises(UserError, match="another model than the one this run began with"):
        score(settings, model)


def test_without_any_server_the_run_ends_in_one_line(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    model = meet(folder, settings, server)
    server.stop()
    with pytest.raises(UserError, match=r"no connection.*no server has answered for 1 s.*again"):
        score(settings, model)


def test_a_sequence_that_is_never_answered_ends_the_run_and_is_not_blamed(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url, timeout_s=0.3)
    model = meet(folder, settings, server)
    server.script = lambda ids: Fault(delay_s=0.6) if ids == SPANS[3].token_ids else None
    with pytest.raises(UserError, match=r"no reply within 0\.3 s.*engine\.timeout_s"):
        score(settings, model)


def test_a_slow_server_gives_signs_of_life(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    engine = build_engine(
        settings, meet(folder, settings, server), max_length=MAX_LENGTH, trust_remote_code=False
    )
    server.script = lambda _: Fault(delay_s=2.5, status=503) if time.monotonic() < end else None
    end, counts = time.monotonic() + 1, list[int]()
    engine.logprobs(SPANS[:1], counts.append)
    assert counts.count(0) >= 2
    assert sum(counts) == 1


# --- what is checked before anything is scored ---------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"name": "other"}, r"serves other, not m; .*engine\.model"),
    "short": ({"max_model_len": 512}, r"takes 512 tokens, but 513 .*--max-model-len 513"),
    "none": ({"has_logprobs": False}, "gives no prompt_logprobs"),
    "logits": ({"gives_logits": True}, r"not log-probs.*--logprobs-mode"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_cannot_be_used_costs_one_line(
    folder: Path, open_server: Callable[..., StandIn], name: str
) -> None:
    server = open_server()
    changes, words = FAULTS[name]
    for key, value in changes.items():
        setattr(server, key, value)
    with pytest.raises(UserError, match=words) as caught:
        meet(folder, settings_for(server.url))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(server.url)


def test_another_tokenizer_is_refused(folder: Path, open_server: Callable[..., StandIn]) -> None:
    server = open_server()
    server.tokenizer = lambda *_, **__: {"input_ids": [1, 2, 3]}
    with pytest.raises(UserError, match=r"encodes text differently.*model\.path"):
        meet(folder, settings_for(server.url))


def test_servers_of_two_models_are_refused(
    folder: Path, open_server: Callable[..., StandIn]
) -> None:
    one, two = open_server(), open_server()
    two.salt = 1
    with pytest.raises(UserError, match=f"{two.url}: another model than that of {one.url}"):
        meet(folder, settings_for(one.url, two.url))


def test_a_key_is_sent_and_never_told(
    folder: Path,
    open_server: Callable[..., StandIn],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = open_server()
    server.key = KEY
    monkeypatch.setenv("SOME_KEY", KEY)
    settings = settings_for(server.url, api_key_env="SOME_KEY")
    with caplog.at_level(logging.DEBUG):
        assert_scored(score(settings, meet(folder, settings, server)))
        server.key = "another"
        with pytest.raises(UserError, match=r"HTTP 401.*\[key\].*engine\.api_key_env") as caught:
            meet(folder, settings)
    assert KEY not in f"{caught.value} {caplog.text} {settings.identity()}"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UserError, match=r"SOME_KEY.*engine\.api_key_env=null"):
        meet(folder, settings)


def test_one_server_is_enough_to_begin_and_none_is_one_line(
    folder: Path, open_server: Callable[..., StandIn], caplog: pytest.LogCaptureFixture
) -> None:
    one, gone = open_server(), open_server()
    gone.stop()
    settings = settings_for(gone.url, one.url)
    assert_scored(score(settings, meet(folder, settings, one)))
    assert f"{gone.url}: no connection" in caplog.text
    with pytest.raises(UserError, match=f"{gone.url}: no connection.*no server answers"):
        meet(folder, settings_for(gone.url))


@pytest.mark.parametrize("url", ["localhost:8000", "http://user:pass@host/v1", "ftp://host"])
def test_an_address_that_is_none_is_refused(folder: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"^engine\.base_url") as caught:
        meet(folder, settings_for(f"'{url}'"))
    assert "pass@" not in str(caught.value)


# --- the model that a run began with -------------------------------------------------------------


def test_a_run_keeps_to_the_model_that_it_began_with(
    folder: Path, open_server: Callable[..., StandIn], tmp_path: Path
) -> None:
    server = open_server()
    settings = settings_for(server.url)
    begun = meet(folder, settings).settle(tmp_path)
    assert meet(folder, settings).settle(tmp_path) == begun
    server.salt = 1
    other = meet(folder, settings)
    assert other.fingerprint == begun.fingerprint  # a name, as far as a folder can tell
    with pytest.raises(UserError, match="another model than the one this run began with"):
        other.settle(tmp_path)


def test_weights_beside_the_tokenizer_decide_nothing(
    folder: Path, open_server: Callable[..., StandIn], tmp_path: Path
) -> None:
    settings = settings_for(open_server().url)
    bare = write_checkpoint(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert meet(bare, settings).fingerprint == meet(folder, settings).fingerprint


def test_stages_that_need_more_than_servers_give_say_so(folder: Path) -> None:
    settings, model = settings_for("http://localhost:1"), read_checkpoint(folder)
    for build in (build_engine, build_embedder):
        with pytest.raises(UserError, match="only `score` and `generate` can ask servers"):
            build(settings, model, max_length=8, trust_remote_code=False)


# --- through the commands ------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    answers = [f"Answer {number}, and no more." for number in range(12)]
    answers[7] = f"{DEADLY} {answers[7]}"
    return write_rows(tmp_path / "rows.jsonl", answers)


def score_words(server: StandIn, folder: Path, data: Path, run_dir: Path) -> list[str]:
    words = ("engine=vllm_server", f"engine.base_url={server.url}", "engine.model=m")
    more = ("engine.max_tries=1", "engine.patience_s=1", "engine.timeout_s=60")
    return command(data, folder, run_dir, *words, *more)


def test_a_row_that_servers_refuse_is_found_and_dropped(
    folder: Path,
    open_server: Callable[..., StandIn],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = open_server()
    words = score_words(server, folder, rows, tmp_path / "run")
    meet(folder, settings_for(server.url), server)
    deadly = server.tokenizer(DEADLY, add_special_tokens=False)["input_ids"]

    def refuse(token_ids: list[int]) -> Fault | None:
        return refusal("CUDA error", 500) if set(deadly) <= set(token_ids) else None

    server.script = refuse
    monkeypatch.setattr("cherry_vllm.workers.run.build_executor", lambda *_: InlineExecutor())
    monkeypatch.setattr(
        "cherry_vllm.sources.row_shards.isolate", lambda function, *given: function(*given)
    )
    config = compose(*words[1:])
    run_score(config, Job(Path(config.run_dir), is_sweep=False))
    reasons = pl.read_parquet(tmp_path / "run" / "scores.parquet")["drop_reason"].to_list()
    assert [row for row, reason in enumerate(reasons) if reason == "engine_failed"] == [7]


@pytest.mark.process
@pytest.mark.parametrize("phase", ["first look", "scoring"])
def test_a_signal_ends_a_run_that_waits_for_servers(
    folder: Path, open_server: Callable[..., StandIn], rows: Path, tmp_path: Path, phase: str
) -> None:
    server, asked = open_server(), threading.Event()
    probe = list(meet(folder, settings_for(server.url), server).probe)
    server.probe = probe if phase == "scoring" else []

    def hang(_: list[int]) -> Fault:
        asked.set()
        return Fault(delay_s=30)

    server.script = hang
    process = start(*score_words(server, folder, rows, tmp_path / "run"))
    assert asked.wait(100)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert time.monotonic() - began < 2
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command resumes" in stderr
