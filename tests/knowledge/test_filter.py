"""Filters: what they mean, what is no filter, and that none is ever more than a condition."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidArgument
from appliance.knowledge.search import filter as filters
from appliance.knowledge.search.filter import Comparison, Condition, Expression, Joined, Kind, Not, parse
from appliance.knowledge.storage.record import to_micros

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
ROWS: dict[str, dict[str, Any]] = {
    "handbook": {
        "title": "Staff Handbook",
        "media_type": "application/pdf",
        "size_bytes": 4000,
        "page_count": 12,
        "create_time": to_micros(NEW_YEAR),
        "texts": {"dept": "security", "status": "final"},
        "numbers": {"year": 2026.0},
        "flags": {"public": True},
    },
    "draft": {
        "title": "Entwurf: ÄNDERUNGEN",
        "media_type": "text/plain",
        "size_bytes": 10,
        "page_count": 1,
        "create_time": to_micros(NEW_YEAR) - 1,
        "texts": {"status": "draft"},
        "numbers": {"year": 2019.0},
        "flags": {"public": False},
    },
    "note": {
        "title": "O'Neil's \"note\"",
        "media_type": "text/plain",
        "size_bytes": 700,
        "page_count": 1,
        "create_time": to_micros(NEW_YEAR) + 86_400_000_000,
        "texts": {"year": "2026"},
        "numbers": {},
        "flags": {},
    },
}


@pytest.fixture(scope="module")
def table() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(":memory:")
    connection.execute(
        "CREATE TABLE documents (id VARCHAR, title VARCHAR, media_type VARCHAR, source VARCHAR, sha256 VARCHAR,"
        " parser VARCHAR, size_bytes BIGINT, page_count INTEGER, create_time BIGINT, readers VARCHAR[],"
        " texts MAP(VARCHAR, VARCHAR), numbers MAP(VARCHAR, DOUBLE), flags MAP(VARCHAR, BOOLEAN))"
    )
    for name, row in ROWS.items():
        columns = {
            "id": name,
            "source": "stick",
            "sha256": "0" * 64,
            "parser": "text/1",
            "readers": ["everyone"],
            **row,
        }
        placed = ", ".join("?" * len(columns))
        connection.execute(f"INSERT INTO documents ({', '.join(columns)}) VALUES ({placed})", list(columns.values()))
    yield connection
    connection.close()


def found(table: duckdb.DuckDBPyConnection, condition: Condition) -> set[str]:
    query = f"SELECT id, {condition.sql} FROM documents WHERE {condition.sql}"
    rows = table.execute(query, [*condition.values, *condition.values]).fetchall()
    assert all(holds is True for _, holds in rows)
    return {name for name, _ in rows}


MEANINGS = [
    ('media_type = "application/pdf"', {"handbook"}),
    ("media_type = 'application/pdf' AND year >= 2020", {"handbook"}),
    ("page_count = 1", {"draft", "note"}),
    ("size_bytes > 10 AND size_bytes <= 4e3", {"handbook", "note"}),
    ('title : "hand"', {"handbook"}),
    ('title:"änderungen"', {"draft"}),
    ('title = "o\'neil\'s \\"note\\""', set()),
    ('title = "O\'Neil\'s \\"note\\""', {"note"}),
    ("title = 'O\\'Neil\\'s \"note\"'", {"note"}),
    ("year = 2026", {"handbook"}),
    ('year = "2026"', {"note"}),
    ("year != 2026", {"draft"}),
    ("NOT year = 2026", {"draft", "note"}),
    ("year:*", {"handbook", "draft", "note"}),
    ("dept:*", {"handbook"}),
    ("NOT dept:*", {"draft", "note"}),
    ("public = true", {"handbook"}),
    ("public != true", {"draft"}),
    ('status IN ("draft", "final")', {"handbook", "draft"}),
    ("year IN (2019)", {"draft"}),
    ('page_count = 1 AND (status = "draft" OR year = "2026")', {"draft", "note"}),
    ('NOT (status = "draft" OR status = "final")', {"note"}),
    ("NOT NOT public = false", {"draft"}),
    ('create_time >= "2026-01-01"', {"handbook", "note"}),
    ('create_time < "2026-01-01T00:00:00Z"', {"draft"}),
    ('create_time = "2026-01-01T01:00:00+01:00"', {"handbook"}),
    ('create_time > "2026-01-01T00:00:00.000001Z"', {"note"}),
    ("no_such_name = 1", set()),
    ('parser = "text/1" AND source = "stick" AND sha256 > "0"', {"handbook", "draft", "note"}),
]


@pytest.mark.parametrize(("text", "wanted"), MEANINGS)
def test_a_filter_finds_what_it_says(table: duckdb.DuckDBPyConnection, text: str, wanted: set[str]) -> None:
    assert found(table, parse(text)) == wanted


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", 1, "a name, NOT or '('"),
        ("   ", 4, "a name, NOT or '('"),
        ("year", 5, "an operator"),
        ("year =", 7, "a string in quotes, a number, true or false"),
        ("year = 2020 2021", 13, "AND, OR or the end"),
        ("year = 2020 and year = 2021", 13, "AND, OR or the end"),
        ("year == 2020", 7, "a string in quotes, a number, true or false"),
        ("year = 2020;", 12, "AND, OR or the end"),
        ("year = 1e999", 8, "a string in quotes, a number, true or false"),
        ("year = NaN", 8, "a string in quotes, a number, true or false"),
        ('title = "open', 9, "a string in quotes"),
        ("title = 7", 9, "a string in quotes"),
        ('page_count = "7"', 14, "a number"),
        ("page_count : 7", 12, "expected one of =, !=, <, <=, >, >="),
        ("public > true", 8, "expected one of =, !="),
        ("title:*", 7, "a string in quotes"),
        ('create_time = "yesterday"', 15, "a time such as"),
        ('create_time = "2026-13-01"', 15, "a time such as"),
        ('create_time = "2026-01-01T00:00:00"', 15, "a time such as"),
        ("create_time = 5", 15, "a time such as"),
        ('title IN "a"', 10, "'('"),
        ("title IN ()", 11, "a string in quotes"),
        ('title IN ("a", 1)', 16, "a string in quotes"),
        ('title IN ("a"', 14, "')'"),
        ("(year = 1", 10, "')'"),
        ("year = 1)", 9, "AND, OR or the end"),
        ("NOT", 4, "a name, NOT or '('"),
        ("AND = 1", 1, "a name, NOT or '('"),
        ("true = 1", 1, "a name, NOT or '('"),
        ("Year = 1", 1, "a name, NOT or '('"),
        ("a = 1 AND b = 2 OR c = 3", 17, "need parentheses"),
        ("a = 1 OR b = 2 AND c = 3", 16, "need parentheses"),
        ('"title" = "a"', 1, "a name, NOT or '('"),
        ("title -- = 'a'", 7, "an operator"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place_and_what_was_expected(
    text: str, place: int, expected: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert caught.value.field == "filter"
    assert f"at character {place}: " in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["readers", "id", "collection", "pipeline", "passage_count", "metadata"])
def test_who_may_read_and_what_is_internal_is_no_field(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"at character 1: {name} cannot be filtered by"):
        parse(f'{name} = "everyone"')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('title = "' + "x" * filters.MAX_CHARACTERS + '"', "at most 4000 characters"),
        ("(" * 33 + "a = 1" + ")" * 33, "nested more than 32 deep"),
        ("NOT " * 33 + "a = 1", "nested more than 32 deep"),
        ("a IN (" + ", ".join("1" * 1 for _ in range(257)) + ")", "more than 256 values"),
        (" AND ".join("a=1" for _ in range(257)), "more than 256 values"),
        ('a = "\ud800"', "must be Unicode text"),
    ],
)
def test_a_filter_is_bounded(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        parse(text)


def test_what_just_fits_the_bounds_is_taken(table: duckdb.DuckDBPyConnection) -> None:
    assert found(table, parse("(" * 31 + "page_count = 1" + ")" * 31)) == {"draft", "note"}
    assert found(table, parse(f"page_count IN ({', '.join(map(str, range(256)))})")) == {"handbook", "draft", "note"}


OUR_SQL = re.compile(
    r"(?:coalesce|false|AND|OR|NOT|IN|contains|lower|map_contains|texts|numbers|flags|title|media_type|source|sha256"
    r"|parser|size_bytes|page_count|create_time|\?|[(),\[\]=<> ]|!=)*"
)
PIECES = [
    *("title", "year", "readers", "public", "create_time", "size_bytes", "AND", "OR", "NOT", "IN", "(", ")", ","),
    *("=", "!=", "<", ">=", ":", "*", "true", "false", "1", "-2.5", "1e9", '"a"', "'b'", '"2026-01-01"', '"\\""'),
    *("; DROP TABLE documents", "--", "/*", "' OR 1=1", '" OR ""="', "UNION SELECT", "$1", "?", "\0", "\\", "%", "é"),
]
ANYTHING = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map(" ".join))


@given(text=ANYTHING, suffix=ANYTHING)
def test_whatever_is_sent_is_refused_or_is_our_sql_with_bound_values_that_only_narrows(
    table: duckdb.DuckDBPyConnection, text: str, suffix: str
) -> None:
    for sent in (text, f'title = "x" OR {text}', f'title = "{suffix}"', f"{text} = 1", f"year = 2026 {suffix}"):
        try:
            condition = parse(sent)
        except InvalidArgument:
            continue
        assert OUR_SQL.fullmatch(condition.sql)
        assert condition.sql.count("?") == len(condition.values)
        query = f"SELECT id FROM documents WHERE list_has_any(readers, ?) AND {condition.sql}"
        assert table.execute(query, [["nobody"], *condition.values]).fetchall() == []
        assert found(table, condition) <= ROWS.keys()


COMPARISONS = st.one_of(
    st.builds(
        Comparison,
        st.sampled_from(["title", "media_type", "dept", "status", "year"]),
        st.just(Kind.TEXT),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">=", ":"]),
        st.tuples(st.sampled_from(["final", "Staff Handbook", "2026", "", 'quo"te', "text/plain", "a\\b", "é"])),
    ),
    st.builds(
        Comparison,
        st.sampled_from(["size_bytes", "page_count", "year", "dept"]),
        st.just(Kind.NUMBER),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "IN"]),
        st.tuples(st.sampled_from([2026.0, 1.0, 700.0, -5.5, 1e300])),
    ),
    st.builds(
        Comparison,
        st.sampled_from(["public", "year"]),
        st.just(Kind.FLAG),
        st.sampled_from(["=", "!="]),
        st.tuples(st.booleans()),
    ),
    st.builds(Comparison, st.sampled_from(["year", "dept", "none"]), st.just(Kind.TEXT), st.just(":"), st.just(())),
)
EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(
    COMPARISONS,
    lambda terms: st.one_of(
        st.builds(Not, terms),
        st.builds(Joined, st.sampled_from(["AND", "OR"]), st.lists(terms, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def written(expression: Expression) -> str:
    """The expression as a filter."""
    if isinstance(expression, Not):
        return f"NOT ({written(expression.term)})"
    if isinstance(expression, Joined):
        return f" {expression.word} ".join(f"({written(term)})" for term in expression.terms)
    if not expression.values:
        return f"{expression.name}:*"
    (value,) = expression.values
    if isinstance(value, bool):
        said = str(value).lower()
    elif isinstance(value, str):
        said = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    else:
        said = repr(value)
    return f"{expression.name} {expression.operator} {f'({said})' if expression.operator == 'IN' else said}"


def holds(row: dict[str, Any], expression: Expression) -> bool:
    """What the expression says of a row, by the words of the module alone."""
    if isinstance(expression, Not):
        return not holds(row, expression.term)
    if isinstance(expression, Joined):
        return (all if expression.word == "AND" else any)(holds(row, term) for term in expression.terms)
    name = expression.name
    if not expression.values:
        return any(name in row[kind] for kind in ("texts", "numbers", "flags"))
    held = row.get(
        name, row[{Kind.TEXT: "texts", Kind.NUMBER: "numbers", Kind.FLAG: "flags"}[expression.kind]].get(name)
    )
    (value,) = expression.values
    if held is None:
        return False
    if expression.operator == ":":
        return str(value).lower() in str(held).lower()
    compare = {"=": eq, "IN": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
    return bool(compare[expression.operator](held, value))


@given(EXPRESSIONS)
def test_every_expression_means_what_its_words_say(table: duckdb.DuckDBPyConnection, expression: Expression) -> None:
    text = written(expression)
    assert filters.parsed(text) == expression
    assert found(table, parse(text)) == {name for name, row in ROWS.items() if holds(row, expression)}
