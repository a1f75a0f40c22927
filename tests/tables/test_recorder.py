"""The buffer on the device and the part files it goes to."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trimtab.tables.parts import Parts, read_table
from trimtab.tables.recorder import Recorder, fetch

CPU = torch.device("cpu")
SCHEMA = pa.schema([("step", pa.int64()), ("value", pa.float64())], metadata={"note": "kept"})


def rows(*steps: int) -> pa.Table:
    return pa.table({"step": list(steps), "value": [0.5 * step for step in steps]}, schema=SCHEMA)


def test_only_committed_rows_are_fetched_and_in_order():
    recorder = Recorder(capacity=2)
    for step in (4, 9):
        slot = recorder.slot((1, 2), CPU)
        assert not slot.any()
        slot.fill_(99)  # a step that is never taken
        recorder.slot((1, 2), CPU).fill_(step)
        recorder.commit(step)
    assert recorder.full
    with pytest.raises(ValueError, match="2 rows wait"):
        recorder.slot((1, 2), CPU)
    ((steps, values),) = fetch([recorder])
    assert steps == [4, 9]
    assert values.tolist() == [[[4, 4]], [[9, 9]]]
    assert fetch([recorder])[0][0] == []
    assert recorder.slot((3,), CPU).shape == (3,)  # another shape, now that nothing waits


def test_fetched_rows_do_not_change_with_the_buffer():
    recorder = Recorder(1)
    recorder.slot((1,), CPU).fill_(1)
    recorder.commit(0)
    ((_, values),) = fetch([recorder])
    recorder.slot((1,), CPU).fill_(2)
    assert values.item() == 1


def test_several_recorders_are_fetched_by_one_copy(monkeypatch):
    first, second, empty = Recorder(4), Recorder(3), Recorder(1)
    for step in range(3):
        first.slot((2, 2), CPU).fill_(step)
        first.commit(step)
    second.slot((5,), CPU).fill_(7)
    second.commit(1)
    copies = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(1) or real(tensor))
    (one, two, none) = fetch([first, second, empty])
    assert len(copies) == 1
    assert one[1][:, 0, 0].tolist() == [0, 1, 2]
    assert two[1].tolist() == [[7] * 5]
    assert none[0] == []


def test_wrong_capacity():
    with pytest.raises(ValueError, match="capacity must be a whole number of 1 or more, got 0"):
        Recorder(0)


@pytest.mark.parametrize("on_disk", [True, False])
def test_parts_are_read_in_order_and_cut_where_a_run_resumes(tmp_path, on_disk):
    folder = tmp_path / "t.parquet" if on_disk else None
    parts = Parts(SCHEMA, folder)
    assert parts.table(before=100).num_rows == 0
    for steps in ([0, 2, 4], [6], [], [8, 10]):
        parts.append(rows(*steps))
    assert parts.table(before=9)["step"].to_pylist() == [0, 2, 4, 6, 8]
    parts.drop_from(4)
    assert parts.table(before=100)["step"].to_pylist() == [0, 2]
    parts.append(rows(4, 5))
    assert parts.table(before=100)["step"].to_pylist() == [0, 2, 4, 5]
    assert parts.table(before=100).schema == SCHEMA
    if folder is not None:
        assert sorted(file.name for file in folder.iterdir()) == ["part-0000000000.parquet", "part-0000000004.parquet"]
        assert read_table(folder).schema.metadata == {b"note": b"kept"}
    parts.drop_from(0)
    assert parts.table(before=100).num_rows == 0
    assert not list(tmp_path.iterdir())


def test_rows_in_memory_survive_as_bytes(tmp_path):
    parts = Parts(SCHEMA, None)
    parts.append(rows(1, 2))
    parts.append(rows(3))
    state = parts.state()
    assert state.dtype == torch.uint8
    other = Parts(SCHEMA, None)
    other.restore(state, step=3)
    assert other.table(before=9)["value"].to_pylist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="kept its rows in memory, this one has folder"):
        Parts(SCHEMA, tmp_path).restore(state, 3)
    with pytest.raises(ValueError, match="kept its rows in a folder"):
        Parts(SCHEMA, None).restore(None, 3)
    with pytest.raises(ValueError, match=r"columns \['step', 'value'\], this table \['step'\]"):
        Parts(pa.schema([("step", pa.int64())]), None).restore(state, 3)
    with pytest.raises(ValueError, match="damaged"):
        other.restore(torch.zeros(9, dtype=torch.uint8), 3)


def test_reading(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_table(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no part"):
        read_table(tmp_path)
    single = tmp_path / "single.parquet"
    pq.write_table(rows(7), single)
    assert read_table(single)["step"].to_pylist() == [7]
    (tmp_path / "part-0000000000.parquet").write_bytes(single.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"part-0000000000.parquet is not a readable Parquet file"):
        read_table(str(tmp_path))


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    parts = Parts(SCHEMA, tmp_path / "t")
    parts.append(rows(0, 1))
    monkeypatch.setattr(
        pq, "write_table", lambda *given, **settings: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="could not write"):
        parts.append(rows(2))
    with pytest.raises(OSError, match="could not write"):
        parts.drop_from(1)
    assert read_table(tmp_path / "t")["step"].to_pylist() == [0, 1]
    assert len(list((tmp_path / "t").iterdir())) == 1
