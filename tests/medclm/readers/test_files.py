"""Comma-separated values: a bad line is one rejected row with its number, never the end of the file."""

from __future__ import annotations

import pytest

from trimtab.medclm.files import Damaged, csv_rows


def _read(tmp_path, content):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    return list(csv_rows(file, ["a", "b"]))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_of_each_system(tmp_path, end):
    found = _read(tmp_path, end.join([b"\xef\xbb\xbfa, b", b"1,2", b"", b"3,4"]) + end)
    assert found == [("line 2", {"a": "1", "b": "2"}), ("line 4", {"a": "3", "b": "4"})]


def test_a_bad_line_is_rejected_and_the_next_is_read(tmp_path):
    found = _read(tmp_path, b"a,b\n1\r5,2\n" + b"x" * 140_000 + b",2\n\xff,2\n1,2,3\n3,4\n")
    assert [type(item) for item in found] == [Damaged] * 4 + [tuple]
    assert [item.rejected.row for item in found[:4]] == ["line 2", "line 3", "line 4", "line 5"]
    assert [item.fields for item in found[:4]] == [("1", "5", "2"), ("2",), ("\ufffd", "2"), ("1", "2", "3")]
    reasons = [item.rejected.reason for item in found[:4]]
    assert reasons[0] == "line is not comma-separated values: it holds a carriage return"
    assert "131072" in reasons[1]
    assert all(len(item.rejected.value) < 300 for item in found[:4])
    assert found[4] == ("line 6", {"a": "3", "b": "4"})


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "empty"), (b"a\rx,b\n1,2\n", "line 1 is not a header"), (b"\xff\n", "not UTF-8")]
)
def test_a_bad_header_is_one_error_that_names_the_file(tmp_path, content, match):
    with pytest.raises(ValueError, match=rf"a\.csv.*{match}"):
        _read(tmp_path, content)
