"""Records of crawls: sound, damaged, cut, huge and hostile; nothing is lost without being counted."""

import base64
import gzip
import hashlib
import io
import random
import zlib
from pathlib import Path

import pytest

from pretrain.data.curation.units import _MemberCuts
from pretrain.data.curation.web.responses import Response, UnusableError, read_response
from pretrain.data.curation.web.warc import MAX_PASSED_BYTES, Record, parse_headers, read_records, record_start


def record(content: bytes, kind: str = "response", digest: bool = True, **headers: object) -> bytes:
    """Return one record; `headers` replace those that it has."""
    fields: dict[str, object] = {"WARC-Type": kind, "Content-Length": len(content)}
    if digest:
        fields["WARC-Block-Digest"] = "sha1:" + base64.b32encode(hashlib.sha1(content).digest()).decode()
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"WARC/1.0\r\n{head}\r\n".encode() + content + b"\r\n\r\n"


def read(data: bytes, compressed: bool, most: int | None = 1000, span: tuple[int, int] | None = None):
    """Return the records of a file and the damage in it: offsets with reasons."""
    damaged: list[tuple[int, str]] = []
    found = read_records(
        io.BytesIO(data), span or (0, len(data)), compressed, lambda headers: most, lambda *why: damaged.append(why)
    )
    return list(found), damaged


def contents(records: list[Record]) -> list[bytes | None]:
    return [each.content for each in records]


PARTS = [record(f"page {n}".encode() * (n + 1)) for n in range(6)]
TEXTS = [f"page {n}".encode() * (n + 1) for n in range(6)]


@pytest.mark.parametrize("compressed", [False, True])
def test_records_are_read_with_their_place(compressed: bool) -> None:
    parts = [gzip.compress(part, mtime=0) if compressed else part for part in PARTS]
    records, damaged = read(b"".join(parts), compressed)
    assert (contents(records), damaged) == (TEXTS, [])
    for each, part in zip(records, parts, strict=True):
        assert b"".join(parts)[each.offset :].startswith(part)
    assert records[0].headers["warc-type"] == "response"
    assert contents(read(b"".join(parts), compressed, most=6)[0]) == [TEXTS[0], *[None] * 5]
    assert read(b"".join(parts), compressed, most=None) == ([], [])
    assert read(b"", compressed) == ([], [])


def test_several_records_in_one_member_have_places_of_their_own() -> None:
    records, damaged = read(gzip.compress(b"".join(PARTS[:3])) + gzip.compress(PARTS[3]), True)
    assert (contents(records), damaged) == (TEXTS[:4], [])
    assert len({each.position for each in records}) == 4
    assert [each.number for each in records] == [0, 1, 2, 0]


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_costs_the_record_that_has_it(compressed: bool) -> None:
    """A bit is flipped at random bytes of a file: other records than the one around it are read."""
    parts = [gzip.compress(part, mtime=0) if compressed else part for part in PARTS[:4]]
    data, ends = b"".join(parts), [sum(map(len, parts[: n + 1])) for n in range(4)]
    for position in random.Random(0).sample(range(len(data)), 150):
        hurt = next(n for n, end in enumerate(ends) if position < end)
        broken = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        records, damaged = read(broken, compressed)
        others = [text for n, text in enumerate(TEXTS[:4]) if n != hurt]
        assert [text for text in contents(records) if text in others] == others, position
        assert len(records) == 4 or damaged, position


@pytest.mark.parametrize("compressed", [False, True])
def test_a_cut_file_says_where(compressed: bool) -> None:
    parts = [gzip.compress(part, mtime=0) if compressed else part for part in PARTS[:3]]
    data = b"".join(parts)
    for cut in range(1, len(parts[2]) - 4):
        records, damaged = read(data[:-cut], compressed)
        assert contents(records)[:2] == TEXTS[:2]
        assert damaged or len(records) == 3
        assert not damaged or damaged[0][0] == len(parts[0] + parts[1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GIF89a and so on", "it does not begin with WARC/1"),
        (b"WARC/1.0\r\nA: b", "the file ends inside its header"),
        (b"WARC/1.0\r\nA: b\r\n\r\n", "its header has no content-length"),
        (record(b"x", Content_Length="-4"), "its header has no content-length"),
        (record(b"x", Content_Length=999), "it ends after 5 of 999 bytes"),
        (record(b"x", WARC_Block_Digest="sha1:" + "A" * 32), "its content does not have the sha1 of its header"),
        (b"WARC/1.0\r\n" + b"a" * 200_000, "its header is longer than 131,072 bytes"),
    ],
)
def test_records_that_cannot_be_read(data: bytes, reason: str) -> None:
    assert read(data, False) == ([], [(0, reason)])
    records, damaged = read(data + b"\r\n" + PARTS[1], False)
    assert contents(records)[-1:] == [TEXTS[1]]
    assert damaged[0][0] == 0
    records, damaged = read(gzip.compress(data) + gzip.compress(PARTS[1]), True)
    assert contents(records) == [TEXTS[1]]
    assert damaged[0][0] == 0
    assert read(b"no gzip at all" + gzip.compress(PARTS[1]), True)[1] == [(0, "no gzip member begins where one should")]


def test_compressed_records_that_are_cut_or_damaged_say_so() -> None:
    texts = [random.Random(n).randbytes(900) for n in range(2)]  # which no compression makes smaller
    first, second = (gzip.compress(record(text), mtime=0) for text in texts)
    assert read(first[:-300], True) == ([], [(0, "the file ends inside a record")])
    flipped = bytearray(first)
    flipped[12] ^= 255
    records, damaged = read(bytes(flipped) + second, True)
    assert contents(records) == [texts[1]]
    assert [reason.partition(" (")[0] for _, reason in damaged] == ["its compressed bytes are damaged"]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_ends_in_a_record_that_is_passed_over_is_damaged(compressed: bool) -> None:
    request = record(random.Random(0).randbytes(900), "request")
    data = (gzip.compress(request, mtime=0) if compressed else request)[:-300]
    assert read(data, compressed, most=None) == ([], [(0, "the file ends inside a record")])


def test_a_header_that_is_cut_does_not_swallow_the_next_record() -> None:
    whole = record(b"a" * 900)
    assert read(whole[:40] + b"\r\n" + PARTS[2] + PARTS[3], False)[1] == [(0, "its header is cut")]
    assert contents(read(whole[:40] + b"\r\n" + PARTS[2] + PARTS[3], False)[0]) == TEXTS[2:4]


def test_a_cut_record_does_not_swallow_the_next_one() -> None:
    whole = record(b"a" * 900)
    records, damaged = read(whole[:400] + PARTS[2] * 20, False)
    assert contents(records) == [TEXTS[2]] * 20
    assert damaged == [(0, "its content does not have the sha1 of its header")]


@pytest.mark.slow
def test_a_bomb_is_passed_over_without_being_decompressed() -> None:
    size = 4 * MAX_PASSED_BYTES
    compressor, head = zlib.compressobj(9, zlib.DEFLATED, 31), record(b"", Content_Length=size, digest=False)[:-4]
    bomb = compressor.compress(head)
    bomb += b"".join(compressor.compress(b"\0" * (1 << 24)) for _ in range(size >> 24)) + compressor.flush()
    assert len(bomb) < 2_000_000
    records, damaged = read(bomb + gzip.compress(PARTS[1]), True)
    assert (contents(records), damaged) == ([None, TEXTS[1]], [])


def test_parts_of_a_file_hold_each_record_once() -> None:
    rng = random.Random(1)
    texts = [rng.randbytes(rng.randrange(40, 4000)) for _ in range(300)]
    data = b"".join(gzip.compress(record(text)) for text in texts)
    for unit_bytes, block in ((5000, 1 << 12), (70_000, 1 << 16), (1 << 30, 1000)):
        cuts = _MemberCuts(unit_bytes)
        for at in range(0, len(data), block):
            cuts.read(data[at : at + block])
        ranges = [(start, stop) for start, stop, _ in cuts.to_the_end()]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == len(data)
        found = [text for span in ranges for text in contents(read(data, True, 10_000, span)[0])]
        assert found == texts
        assert len(ranges) == 1 if unit_bytes == 1 << 30 else len(ranges) > 4
    assert record_start(b"x" + gzip.compress(b"no record")) is None


def test_header_lines_may_go_on() -> None:
    assert parse_headers(b"WARC/1.0\r\nA: b\r\n  c\r\nno colon\r\nB:d") == {"a": "b c", "b": "d"}


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    fields = {"Content-Type": "text/html; charset=utf-8"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return (
        f"HTTP/1.1 {status}\r\n{''.join(f'{k}: {v}' + chr(13) + chr(10) for k, v in fields.items())}\r\n".encode()
        + body
    )


PAGE = b"<html><p>A page.</p></html>"


@pytest.mark.parametrize(
    "content",
    [
        response(PAGE),
        response(PAGE, "204"),
        response(PAGE, Content_Type=""),
        response(gzip.compress(PAGE), Content_Encoding="gzip"),
        response(PAGE, Content_Encoding="gzip"),  # the crawl has decompressed it
        response(zlib.compress(PAGE), Content_Encoding="deflate"),
        response(zlib.compress(PAGE)[2:-4], Content_Encoding="deflate"),
        response(b"5\r\n<html\r\n16;x=y\r\n><p>A page.</p></html>\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        response(b"5\r\n<html\r\n16\r\n><p>A page.</p></html>", Transfer_Encoding="chunked"),  # no end
        response(PAGE, Transfer_Encoding="chunked"),  # the crawl has joined them
        b"HTTP/1.0 200\nContent-Type: application/xhtml+xml\n\n" + PAGE,
    ],
)
def test_responses_that_are_pages(content: bytes) -> None:
    assert read_response(content, 1000).body == PAGE


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_page_begins_behind_the_first_blank_line(end: str) -> None:
    page = b"<html><p>One.</p>\r\n\r\n<p>Two.</p>\n\n</html>"
    head = f"HTTP/1.1 200 OK{end}Content-Type: text/html{end}{end}"
    found = read_response(head.encode() + page, 1000)
    assert (found.body, found.headers) == (page, {"content-type": "text/html"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no HTTP response"),
        (b"HTTP/1.1 200 OK", "no HTTP response"),
        (response(PAGE, "404 Not Found"), "HTTP status is not 2xx"),
        (response(PAGE, "2"), "HTTP status is not 2xx"),
        (response(PAGE, Content_Type="image/png"), "no HTML"),
        (response(b"GIF89a", Content_Type=""), "no HTML"),
        (response(PAGE * 50), "larger than html.max_bytes"),
        (response(gzip.compress(b"<" * (1 << 24)), Content_Encoding="gzip"), "larger than html.max_bytes"),
        (response(b"\x1f\x8bno gzip", Content_Encoding="gzip"), "damaged content-encoding"),
        (response(b"\xff\xff\xff", Content_Encoding="deflate"), "damaged content-encoding"),
        (response(PAGE, Content_Encoding="compress"), "unknown content-encoding"),
    ],
)
def test_responses_that_are_no_pages(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableError, match=f"^{reason}$"):
        read_response(content, 1000)


def test_real_crawls(assets: Path) -> None:
    counts = {
        "web_samples/dolma/sample-0000.warc.gz": (48, 22), "web_samples/dolma/sample-0001.warc.gz": (34, 15),
        "web_samples/commoncrawl/whirlwind.warc.gz": (4, 1), "curation/warc/example.warc.gz": (6, 1),
        "curation/warc/example-iana.org-chunked.warc": (3, 1),
    }  # fmt: skip
    for name, (records, pages) in counts.items():
        data = (assets / name).read_bytes()
        found, damaged = read(data, data[:2] == b"\x1f\x8b", 1 << 20)
        assert (len(found), damaged) == (records, []), name
        responses = [each for each in found if each.headers["warc-type"] == "response"]
        answers = [read_response(each.content or b"", 1 << 20) for each in responses]
        assert len(answers) == pages
        assert all(isinstance(each, Response) and each.body for each in answers)
    cut = (assets / "curation/warc/example-trunc.warc").read_bytes()
    assert [at for at, _ in read(cut, False, 1 << 20)[1]] == [1197]
    wrong = (assets / "curation/warc/example-wrong-chunks.warc.gz").read_bytes()
    assert read(wrong, True, 1 << 20)[1] == [(0, "it ends after 343 of 1,613 bytes")]
