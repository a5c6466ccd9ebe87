"""The file of replies: what was paid for survives a kill, a full disk and a foreign neighbour."""

import logging
import resource
from pathlib import Path

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.replies import Replies, Reply

URL = "http://judge/v1"


def test_replies_are_kept_and_a_torn_last_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    kept = {"a": Reply("8 9\n\u00fcber\u2028", "stop", "m"), "b": Reply("1")}
    with Replies(path) as replies:
        for name, reply in kept.items():
            replies.add(name, reply, URL)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Replies(path) as replies:
            assert replies.get("a") == kept["a"]
            # All but the line's end is all of the reply.
            assert replies.get("b") == (kept["b"] if cut >= len(whole) - 1 else None)
            replies.add("c", Reply("1 2"), URL)
        with Replies(path) as replies:
            assert [replies.get(name) for name in "ac"] == [kept["a"], Reply("1 2")]
    path.write_bytes(b'{"request": \n' + whole)
    with pytest.raises(UserError, match="line 1"):
        Replies(path)


@pytest.mark.parametrize("content", [b"my notes", b'{"rows": 3}', b"my notes\n\n{", b"{"])
def test_a_file_that_is_not_ours_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a stored reply"):
        Replies(path)
    assert path.read_bytes() == content


def test_a_reply_without_the_endpoints_address_is_not_used_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "replies.jsonl"
    old = '{"request": "a", "text": "8 9", "finish_reason": "stop", "model": "m"}\n'
    path.write_text(old * 2)
    with caplog.at_level(logging.WARNING), Replies(path) as replies:
        assert replies.get("a") is None
        replies.warn_of_old_lines()
    (record,) = caplog.records
    assert "2 replies of an earlier version" in record.getMessage()
    assert path.read_text() == old * 2


def test_a_stored_empty_reply_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with Replies(path) as replies:
        replies.add("a", Reply(" "), URL)
    with Replies(path) as replies:
        assert replies.get("a") is None


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Replies(path) as replies:
        replies.add("a", Reply("8 9"), URL)
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                replies.add("b", Reply("8 9"), URL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        assert replies.get("b") is None
        replies.add("c", Reply("8 9"), URL)
    assert path.read_bytes().count(b"\n") == 2
