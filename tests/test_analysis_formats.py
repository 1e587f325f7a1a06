"""Real lines of each format are read as what they say, and what cannot be read is counted."""

from __future__ import annotations

import datetime as dt

import pytest
from blackboard_examples.incident.analysis import Level, LogLine, read_log
from blackboard_examples.incident.analysis.timestamps import from_epoch, infer_year, parse_iso
from hypothesis import given
from hypothesis import strategies as st

REFERENCE = dt.datetime(2024, 1, 15, tzinfo=dt.UTC)


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[arg-type]


def one(text: str) -> LogLine:
    lines = list(read_log(text.splitlines(keepends=True), "test", reference=REFERENCE))
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("text", "format_name", "at", "level", "message", "fields"),
    [
        pytest.param(
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
            "syslog (RFC 3164)",
            utc(2023, 10, 11, 22, 14, 15),
            Level.CRITICAL,
            "'su root' failed for lonvick on /dev/pts/8",
            {"host": "mymachine", "app": "su"},
            id="rfc3164 with priority",
        ),
        pytest.param(
            "Jan  7 03:04:05 web1 sshd[4711]: error: maximum authentication attempts exceeded for root",
            "syslog (RFC 3164)",
            utc(2024, 1, 7, 3, 4, 5),
            Level.ERROR,
            "error: maximum authentication attempts exceeded for root",
            {"host": "web1", "app": "sshd", "pid": "4711"},
            id="rfc3164 from a file",
        ),
        pytest.param(
            "Dec 31 23:59:60 web1 kernel: [12345.678901] Out of memory: Killed process 99 (java)",
            "syslog (RFC 3164)",
            utc(2023, 12, 31, 23, 59, 59),
            Level.INFO,
            "[12345.678901] Out of memory: Killed process 99 (java)",
            {"app": "kernel"},
            id="rfc3164 leap second of last year",
        ),
        pytest.param(
            "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 "
            '[exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] An application event log entry',
            "syslog (RFC 5424)",
            utc(2003, 10, 11, 22, 14, 15, 3000),
            Level.INFO,
            "An application event log entry",
            {"app": "evntslog", "msgid": "ID47", "eventSource": "Application"},
            id="rfc5424 with structured data",
        ),
        pytest.param(
            "<11>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.",
            "syslog (RFC 5424)",
            utc(2003, 8, 24, 12, 14, 15, 3),
            Level.ERROR,
            "%% It's time to make the do-nuts.",
            {"pid": "8710", "host": "192.0.2.1"},
            id="rfc5424 without structured data",
        ),
        pytest.param(
            '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326',
            "access log",
            utc(2000, 10, 10, 20, 55, 36),
            Level.INFO,
            "GET /apache_pb.gif 200",
            {"client": "127.0.0.1", "user": "frank", "bytes": "2326"},
            id="common",
        ),
        pytest.param(
            '2001:db8::1 - - [10/Oct/2000:13:55:36 +0000] "POST /a?b=c HTTP/2.0" 503 197 '
            '"https://example.org/" "Mozilla/5.0 (\\"x\\")" 0.731',
            "access log",
            utc(2000, 10, 10, 13, 55, 36),
            Level.ERROR,
            "POST /a?b=c 503",
            {"status": "503", "referer": "https://example.org/", "duration": "0.731"},
            id="combined with request time",
        ),
        pytest.param(
            '10.0.0.9 - - [10/Oct/2000:13:55:36 +0000] "-" 408 -',
            "access log",
            utc(2000, 10, 10, 13, 55, 36),
            Level.WARNING,
            "-  408",
            {"status": "408"},
            id="access without a request",
        ),
        pytest.param(
            '{"timestamp":"2024-01-02T03:04:05.678Z","level":"error","message":"boom","route":"/x","n":3}',
            "JSON lines",
            utc(2024, 1, 2, 3, 4, 5, 678000),
            Level.ERROR,
            "boom",
            {"route": "/x", "n": "3"},
            id="json",
        ),
        pytest.param(
            '{"level":50,"time":1704164645678,"pid":7,"msg":"request failed"}',
            "JSON lines",
            utc(2024, 1, 2, 3, 4, 5, 678000),
            Level.ERROR,
            "request failed",
            {"pid": "7"},
            id="json of pino",
        ),
        pytest.param(
            "2024-01-02 03:04:05.678 CET [4711] LOG:  database system is ready to accept connections",
            "PostgreSQL",
            utc(2024, 1, 2, 2, 4, 5, 678000),
            Level.INFO,
            "database system is ready to accept connections",
            {"pid": "4711"},
            id="postgresql default prefix",
        ),
        pytest.param(
            '2024-01-02 03:04:05.678 UTC [4711] shop@orders FATAL:  role "shop" does not exist',
            "PostgreSQL",
            utc(2024, 1, 2, 3, 4, 5, 678000),
            Level.CRITICAL,
            'role "shop" does not exist',
            {"user": "shop", "db": "orders"},
            id="postgresql on debian",
        ),
        pytest.param(
            "2024-01-02 03:04:05 UTC [4711]: [3-1] user=shop,db=orders,app=psql,client=10.0.0.1 ERROR:  deadlock",
            "PostgreSQL",
            utc(2024, 1, 2, 3, 4, 5),
            Level.ERROR,
            "deadlock",
            {"user": "shop", "db": "orders", "client": "10.0.0.1"},
            id="postgresql for pgbadger",
        ),
        pytest.param(
            'time=2024-01-02T03:04:05Z level=warning msg="slow request" route=/orders took=1.5s',
            "logfmt",
            utc(2024, 1, 2, 3, 4, 5),
            Level.WARNING,
            "slow request",
            {"route": "/orders", "took": "1.5s"},
            id="logfmt",
        ),
        pytest.param(
            "2024-01-02 03:04:05,678 - shop.orders - ERROR - no stock left",
            "time stamped text",
            utc(2024, 1, 2, 3, 4, 5, 678000),
            Level.ERROR,
            "no stock left",
            {"logger": "shop.orders"},
            id="python logging",
        ),
        pytest.param(
            "2024-01-02 03:04:05,678 [main] WARN  com.shop.Orders - stock is low",
            "time stamped text",
            utc(2024, 1, 2, 3, 4, 5, 678000),
            Level.WARNING,
            "com.shop.Orders - stock is low",
            {"logger": "main"},
            id="log4j",
        ),
        pytest.param(
            "[2024-01-02 03:04:05] [WARN] cache is cold key=a",
            "time stamped text",
            utc(2024, 1, 2, 3, 4, 5),
            Level.WARNING,
            "cache is cold key=a",
            {"key": "a"},
            id="brackets",
        ),
        pytest.param(
            "2024/01/02 03:04:05 [error] 123#0: *1 connect() failed (111: Connection refused)",
            "time stamped text",
            utc(2024, 1, 2, 3, 4, 5),
            Level.ERROR,
            "123#0: *1 connect() failed (111: Connection refused)",
            {},
            id="nginx error log",
        ),
        pytest.param(
            "2024-01-02T03:04:05.678901234+01:00 web1 app[7]: Connection failed",
            "time stamped text",
            utc(2024, 1, 2, 2, 4, 5, 678901),
            Level.ERROR,
            "web1 app[7]: Connection failed",
            {},
            id="rsyslog with ISO times, nanoseconds",
        ),
    ],
)
def test_line(text: str, format_name: str, at: dt.datetime, level: Level, message: str, fields: dict[str, str]) -> None:
    reader = read_log([text + "\n"], "test", reference=REFERENCE)
    assert reader.format_name == format_name
    line = next(iter(reader))
    assert (line.at, line.level, line.message) == (at, level, message)
    assert fields.items() <= dict(line.fields).items()
    assert line.at.tzinfo is dt.UTC
    assert reader.unparsed == 0


def test_traceback_belongs_to_its_line() -> None:
    line = one(
        "2024-01-02 03:04:05,678 ERROR unhandled\n"
        "Traceback (most recent call last):\n"
        '  File "app.py", line 3, in f\n'
        "    1 / 0\n"
        "ZeroDivisionError: division by zero\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "app.py", line 5, in g\n'
        "shop.errors.OrderLost: order 7\n"
    )
    assert line.message == "unhandled"
    assert line.fields["exception"] == "shop.errors.OrderLost: order 7"
    assert "ZeroDivisionError" in line.fields["more"]


def test_postgresql_detail_and_statement_belong_to_their_error() -> None:
    line = one(
        "2024-01-02 03:04:05.678 UTC [7] a@b ERROR:  new row violates check constraint\n"
        "2024-01-02 03:04:05.678 UTC [7] a@b DETAIL:  Failing row contains (1).\n"
        "2024-01-02 03:04:05.678 UTC [7] a@b STATEMENT:  INSERT INTO t\n"
        "\tVALUES (1)\n"
    )
    assert line.level is Level.ERROR
    assert line.fields["detail"] == "Failing row contains (1)."
    assert line.fields["statement"] == "INSERT INTO t\n\tVALUES (1)"


def test_what_cannot_be_read_is_counted_and_shown() -> None:
    good = [f"2024-01-02T03:04:{second:02d}Z INFO fine\n" for second in range(10)]
    reader = read_log([*good[:5], "not a log line\n", "nor this one\n", *good[5:]], "test", reference=REFERENCE)
    assert len(list(reader)) == reader.events == 10
    assert reader.unparsed == 2
    assert reader.unparsed_samples == [(6, "not a log line"), (7, "nor this one")]
    assert reader.physical_lines == 12


@pytest.mark.parametrize("lines", [[], ["\n"], ["hello\n", "world\n"]])
def test_no_log_at_all(lines: list[str]) -> None:
    reader = read_log(lines, "test", reference=REFERENCE)
    assert list(reader) == []
    assert reader.format_name is None
    assert reader.unparsed == sum(1 for line in lines if line.strip())


@given(st.lists(st.text(max_size=200), max_size=40))
def test_any_text_is_read_without_an_error_and_every_line_is_accounted_for(lines: list[str]) -> None:
    reader = read_log(lines, "test", reference=REFERENCE)
    events = list(reader)
    assert reader.events == len(events)
    assert reader.events + reader.unparsed <= len(lines)


@given(st.datetimes(min_value=dt.datetime(2016, 2, 1), max_value=dt.datetime(2023, 12, 31)), st.integers(0, 300))
def test_the_year_is_inferred_for_lines_of_the_last_months(at: dt.datetime, age_days: int) -> None:
    at = at.replace(tzinfo=dt.UTC, microsecond=0)
    reference = at + dt.timedelta(days=age_days)
    assert infer_year(at.month, at.day, at.time(), reference) == at


def test_29_february_is_of_the_last_leap_year() -> None:
    assert infer_year(2, 29, dt.time(12), utc(2023, 5, 1)) == utc(2020, 2, 29, 12)
    assert infer_year(2, 31, dt.time(12), utc(2023, 5, 1)) is None


@given(
    st.datetimes(min_value=dt.datetime(1990, 1, 1), max_value=dt.datetime(2100, 1, 1)), st.integers(-12 * 60, 14 * 60)
)
def test_an_offset_is_taken_into_account(at: dt.datetime, minutes: int) -> None:
    zoned = at.replace(tzinfo=dt.timezone(dt.timedelta(minutes=minutes)))
    assert parse_iso(zoned.isoformat()) == zoned
    assert parse_iso(at.isoformat(sep=" ")) == at.replace(tzinfo=dt.UTC)


@pytest.mark.parametrize("number", [1704164645, 1704164645000, 1704164645000000, 1704164645000000000])
def test_epochs_of_any_unit(number: int) -> None:
    assert from_epoch(number) == utc(2024, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("number", [-1, 0, float("nan"), float("inf"), 1e30])
def test_numbers_that_are_no_epochs(number: float) -> None:
    assert from_epoch(number) is None
