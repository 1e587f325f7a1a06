"""The loader of ``blackboard/sql``, the JSON edge and database URLs: no server needed."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackboard.errors import ConfigurationError, InvalidInput, PayloadTooLarge
from blackboard.jsonable import MAX_JSON_BYTES, check_text, dump_json, load_json
from blackboard.store.statements import Statement, parse, statements
from blackboard.store.urls import asyncpg_url, has_option, normalise_url, redact

FILE = """\
-- Statements about findings.

-- name: report_finding
-- Records a finding.
--   Locks nothing.
INSERT INTO f (id, content) VALUES (:id, CAST(CAST(:content AS text) AS jsonb))
RETURNING id;

-- name: by_id
SELECT id FROM f WHERE id = :id AND :id IS NOT NULL
"""


def test_file_is_cut_into_named_statements():
    found = parse(FILE, "f.sql")
    assert list(found) == ["report_finding", "by_id"]
    report = found["report_finding"]
    assert report.doc == "Records a finding.\n  Locks nothing."
    assert report.parameters == ("id", "content")
    assert report.text.startswith("INSERT INTO f") and report.text.endswith("RETURNING id")
    assert report.numbered.startswith("INSERT INTO f (id, content) VALUES ($1, CAST(CAST($2 AS text)")
    assert found["by_id"].numbered == "SELECT id FROM f WHERE id = $1 AND $1 IS NOT NULL"
    assert found["by_id"].pyformat == "SELECT id FROM f WHERE id = %(id)s AND %(id)s IS NOT NULL"


def test_windows_line_ends_change_nothing():
    assert parse(FILE.replace("\n", "\r\n"), "f.sql")["by_id"].numbered == parse(FILE, "f.sql")["by_id"].numbered


@pytest.mark.parametrize(
    "verbatim",
    [
        "':no'",
        "'it''s :no'",
        "E'it\\'s :no'",
        "e'\\\\' || ':no'",
        "'back\\'",
        '":no"',
        '"a "" :no"',
        "-- :no\n",
        "-- it's :no\n",
        "/* :no */",
        "/* a /* :no */ :no */",
        "$$ :no $$",
        "$body$ :no $$ :no $body$",
        "1::text",
        "now()::timestamptz",
        "f(a := 1)",
        "a[1:2]",
        "'a' ':no'",
        "U&'\\0041 :no'",
    ],
)
def test_colons_that_are_no_parameters(verbatim: str):
    statement = Statement.from_text("s", f"SELECT {verbatim}, :yes")
    assert statement.parameters == ("yes",)
    assert statement.numbered == f"SELECT {verbatim}, $1"
    assert statement.pyformat == f"SELECT {verbatim}, %(yes)s"


def test_percent_signs_are_doubled_everywhere_for_psycopg():
    statement = Statement.from_text("s", "SELECT '%', 5 % 2, :a -- 100%")
    assert statement.pyformat == "SELECT '%%', 5 %% 2, %(a)s -- 100%%"
    assert statement.numbered == "SELECT '%', 5 % 2, $1 -- 100%"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 'a", "never closed"),
        ('SELECT "a', "never closed"),
        ("SELECT $$ a", "never closed"),
        ("SELECT $t$ a $$", "never closed"),
        ("SELECT /* /* */ a", "never closed"),
        ("SELECT $1", "write :name"),
        ("SELECT a[b:c]", "blank"),
    ],
)
def test_sql_that_could_be_read_in_two_ways_is_refused(sql: str, said: str):
    with pytest.raises(ConfigurationError, match=said):
        Statement.from_text("s", sql)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-- name: a\nSELECT 1\n-- name: a\nSELECT 2", "a is there twice"),
        ("-- name:\nSELECT 1", "no statement name"),
        ("-- name: Not Good\nSELECT 1", "no statement name"),
        ("-- name: a\n-- only a header\n", "a is empty"),
        ("SELECT 1\n-- name: a\nSELECT 1", "before the first"),
        ("SELECT 1", "before the first"),
    ],
)
def test_broken_files_name_the_fault(text: str, said: str):
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse(text, "broken.sql")
    assert "broken.sql" in str(caught.value)


def test_files_are_loaded_late_and_once():
    missing = statements("no_such_noun")
    assert statements("no_such_noun") is missing
    with pytest.raises(ConfigurationError, match=r"no_such_noun\.sql"):
        missing["anything"]


def test_unknown_statement_lists_the_known(monkeypatch: pytest.MonkeyPatch):
    loaded = statements("another_noun")
    monkeypatch.setitem(loaded.__dict__, "_by_name", parse(FILE, "f.sql"))
    assert len(loaded) == 2 and set(loaded) == {"report_finding", "by_id"}
    with pytest.raises(KeyError, match="by_id, report_finding"):
        loaded["nothing"]


def test_parameters_are_checked_by_name():
    statement = parse(FILE, "f.sql")["report_finding"]
    assert list(statement.arguments({"content": "{}", "id": 1})) == [1, "{}"]
    with pytest.raises(TypeError, match="report_finding misses content and does not know contents"):
        statement.arguments({"id": 1, "contents": "{}"})


# Pieces that must come through untouched, in any order, with parameters between them.
_VERBATIM = st.one_of(
    st.text(st.characters(exclude_characters="'\\\0", codec="utf-8")).map(lambda s: f"'{s}'"),
    st.text(st.characters(exclude_characters='"\0', codec="utf-8"), min_size=1).map(lambda s: f'"{s}"'),
    st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8")).map(lambda s: f"--{s}\n"),
    st.text(st.characters(exclude_characters="/*\0", codec="utf-8")).map(lambda s: f"/*{s}*/"),
    st.text(st.characters(exclude_characters="$\0", codec="utf-8")).map(lambda s: f"$q${s}$q$"),
    st.sampled_from(["a::text", "1 % 2", "f(a := 1)", "x", "a[1:2]", "5"]),
)
_NAME = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@given(st.lists(st.one_of(_VERBATIM, _NAME.map(lambda name: (name,)))))
def test_parameters_are_found_between_anything(pieces: list[str | tuple[str]]):
    sql = " ".join(piece if isinstance(piece, str) else f":{piece[0]}" for piece in pieces)
    names = list(dict.fromkeys(piece[0] for piece in pieces if not isinstance(piece, str)))
    statement = Statement.from_text("s", sql)
    assert statement.parameters == tuple(names)
    assert statement.numbered == " ".join(
        piece if isinstance(piece, str) else f"${names.index(piece[0]) + 1}" for piece in pieces
    )
    assert statement.pyformat % {name: f":{name}" for name in names} == sql


# --- JSON ------------------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_characters="\0", codec="utf-8")), inner)
    ),
    max_leaves=20,
)


@given(_JSON)
def test_json_reads_back_equal(value: object):
    assert load_json(dump_json(value, "data")) == value


class Colour(Enum):
    RED = "red"
    BAD = math.nan


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        {"a": [None, {"b": -math.inf}]},
        (None, math.nan),
        Colour.BAD,
        {1: "a"},
        object(),
        {1, 2},
        Point(1),
        b"bytes",
        "\ud800",
        {"\udfff": 1},
        "\0",
        {"a\0": 1},
        ["\\\0"],
        2**64,
        -(2**63) - 1,
    ],
    ids=lambda value: type(value).__name__,
)
def test_json_that_would_change_or_be_refused_is_refused_first(value: object):
    with pytest.raises(InvalidInput) as caught:
        dump_json(value, "context")
    assert caught.value.details["field"] == "context"


def test_nesting_without_end_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidInput):
        dump_json(loop, "context")


def test_json_that_only_looks_bad_is_fine():
    for value in ("\\u0000", "\\\\u0000", None, [None, 1.5], {"null": None}, Colour.RED, UUID(int=1)):
        dump_json(value, "data")
    assert load_json(dump_json({"at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, "x")) == {
        "at": "2026-01-01T00:00:00+00:00"
    }


def test_json_over_the_limit_is_too_large():
    dump_json("x" * (MAX_JSON_BYTES - 2), "data")
    with pytest.raises(PayloadTooLarge) as caught:
        dump_json("x" * (MAX_JSON_BYTES - 1), "data")
    assert caught.value.details["field"] == "data"


def test_other_writers_json_is_read():
    assert load_json(None) is None
    assert load_json("1e400") == math.inf
    with pytest.raises(ValueError):  # noqa: PT011 - the text is no JSON at all
        load_json("nonsense")
    assert orjson.loads(dump_json([1], "x")) == [1]


def test_text_is_checked():
    assert check_text("ä", "name", 1, 1) == "ä"
    for value in ("", "ab", "\0", "\ud800", 5, None):
        with pytest.raises(InvalidInput) as caught:
            check_text(value, "name", 1, 1)
        assert caught.value.details["field"] == "name"


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "normal"),
    [
        ("postgres://u@h/db", "postgresql://u@h/db"),
        ("postgresql+asyncpg://u:p@h:5433/db", "postgresql://u:p@h:5433/db"),
        ("postgresql+psycopg://h/db", "postgresql://h/db"),
        ("POSTGRESQL://h/db", "postgresql://h/db"),
        ("postgresql://u@/db?host=/run/x&port=5432", "postgresql://u@/db?host=/run/x&port=5432"),
        ("postgresql://u@/db?host=%2Frun%2Fx", "postgresql://u@/db?host=/run/x"),
        ("postgresql://u:p%40ss@[::1]:5432/db", "postgresql://u:p%40ss@[::1]:5432/db"),
        (
            "postgresql://a:1,b:2/db?target_session_attrs=primary",
            "postgresql://a:1,b:2/db?target_session_attrs=primary",
        ),
        ("postgresql:///db", "postgresql:///db"),
    ],
)
def test_urls_in_every_spelling(given_url: str, normal: str):
    assert normalise_url(given_url) == normal


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h/db",
        "mysql://u:secret@h/db",
        "sqlite:///x.db",
        "postgresql+psycopg2://u:secret@h/db",
        "postgresql://u:secret@h:port/db",
        "postgresql://u:secret@h:99999/db",
        "postgresql://u:sec/ret@h/db",
        "postgresql://u:sec#ret@h/db",
        "postgresql://u:secret@h/db?sslmode",
        "postgresql://u:secret@/db?host=/x&port=abc",
        "postgresql://u:secret@h/d b",
        "postgresql://u:secret@h/db\n",
        "postgresql://",
    ],
)
def test_bad_urls_are_refused_without_the_password(url: str):
    with pytest.raises(ConfigurationError) as caught:
        normalise_url(url)
    assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)
    assert "sec/" not in str(caught.value) and "sec#" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db?password=p&x=1", "postgresql://u@h/db?password=***&x=1"),
        ("postgresql://u@h/db?sslpassword=p", "postgresql://u@h/db?sslpassword=***"),
        ("postgresql://u:a@b@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("nonsense", "nonsense"),
    ],
)
def test_printed_urls_hide_passwords(url: str, shown: str):
    assert redact(url) == shown


def test_options_of_libpq_only_stay_away_from_asyncpg():
    url = normalise_url("postgresql://h/db?sslmode=require&channel_binding=require&connect_timeout=3")
    assert asyncpg_url(url) == "postgresql://h/db?sslmode=require"
    assert has_option(url, "channel_binding") and not has_option(url, "application_name")
