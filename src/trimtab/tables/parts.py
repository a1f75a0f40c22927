"""Tables that grow while a run goes on: part files of Parquet in a folder, or rows in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.files import replace_atomically
from trimtab.inputs import named

if TYPE_CHECKING:
    import pyarrow as pa

PART = "part-{:010d}.parquet"


def read_table(path: Path | str) -> pa.Table:
    """What a tracker left: all parts of a folder in the order of their steps, or a single Parquet file.

    Raises:
        FileNotFoundError: nothing lies at `path`.
        ValueError: a folder without parts, or a damaged file; the message names it.
    """
    import pyarrow as pa

    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("part-*.parquet"))
        if not files:
            raise ValueError(f"{path} holds no part-*.parquet files")
        return pa.concat_tables([_read(file) for file in files])
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    return _read(path)


def _read(file: Path) -> pa.Table:
    import pyarrow.parquet as pq

    with named(file, "is not a readable Parquet file"), pq.ParquetFile(file) as opened:
        return opened.read()


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("part-*.parquet")}


def _mark(file: Path) -> tuple[int, int]:
    """What changes when a file is replaced."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


class Parts:
    """A table with a column `step` to which rows of later and later steps are appended.

    Args:
        schema: of the table.
        folder: where part files go, one per `append`, each named by its first step and written as a whole or not at all.
            None keeps the rows in memory.

    Raises:
        ValueError: (check_empty) there are parts; (check_untouched) somebody else has written there.
    """

    def __init__(self, schema: pa.Schema, folder: Path | None) -> None:
        self.schema, self.folder = schema, folder
        self._rows: list[pa.Table] = []
        self._known: set[str] = set()
        self._last: tuple[Path, tuple[int, int]] | None = None
        self._placeholder: Path | None = None

    def check_empty(self) -> None:
        """Refuse a folder that holds parts."""
        if self.folder is not None and (found := len(_names(self.folder))):
            raise ValueError(
                f"{self.folder} holds {found} part(s) of an earlier run or of another tracker: give each its own folder, "
                "go on with an earlier run by load_state_dict, or replace it with overwrite=True"
            )

    def claim(self, step: int) -> None:
        """Leave an empty part named by `step`, so that nobody else begins there unasked; the first `append` replaces it."""
        if self.folder is not None:
            self._placeholder = self._write(self.schema.empty_table(), step)

    def check_untouched(self) -> None:
        """Refuse a folder where parts were added or replaced since this object last wrote; emptied ones are fine."""
        if self.folder is None or self._last is None:
            return
        found, (last, mark) = _names(self.folder), self._last
        if found - self._known or (last.exists() and _mark(last) != mark):
            raise ValueError(f"another tracker writes in {self.folder} by now; give each its own folder")

    def append(self, table: pa.Table) -> None:
        """Add rows; ignored when there are none."""
        if not table.num_rows:
            return
        if self.folder is None:
            self._rows.append(table)
            return
        written = self._write(table, table["step"][0].as_py())
        if self._placeholder not in {None, written}:
            self._placeholder.unlink(missing_ok=True)
        self._placeholder = None

    def _write(self, table: pa.Table, step: int) -> Path:
        import pyarrow.parquet as pq

        assert self.folder is not None
        path = self.folder / PART.format(step)
        replace_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))
        self._known.add(path.name)
        self._last = path, _mark(path)
        return path

    def drop_from(self, step: int) -> None:
        """Remove the rows of `step` and later, which a run that goes on from `step` will write again."""
        import pyarrow.compute as pc

        if self.folder is None:
            self._rows = [table.filter(pc.less(table["step"], step)) for table in self._rows]
            return
        if not self.folder.is_dir():
            return
        earlier = []
        for file in sorted(self.folder.glob("part-*.parquet")):
            if int(file.stem.removeprefix("part-")) >= step:
                file.unlink()
            else:
                earlier.append(file)
        for file in earlier[-1:]:  # only the last one can hold later steps
            table = _read(file)
            kept = table.filter(pc.less(table["step"], step))
            if kept.num_rows < table.num_rows:
                self._write(kept, int(file.stem.removeprefix("part-")))
        self._known = _names(self.folder)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def table(self, before: int) -> pa.Table:
        """The rows of steps before `before`, with this schema."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.folder is None:
            table = pa.concat_tables([self.schema.empty_table(), *self._rows])
        elif self.folder.is_dir() and any(self.folder.glob("part-*.parquet")):
            table = read_table(self.folder)
        else:
            table = self.schema.empty_table()
        return table.filter(pc.less(table["step"], before))

    def state(self) -> Tensor | None:
        """The rows kept in memory as bytes, shape (bytes,), uint8; None with a folder, where they are on disk."""
        if self.folder is not None:
            return None
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        table = pa.concat_tables([self.schema.empty_table(), *self._rows])
        with pa.ipc.new_stream(sink, self.schema) as stream:
            stream.write_table(table)
        return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)

    def restore(self, state: Tensor | None, step: int) -> None:
        """Go on at `step` from what `state` gave.

        Raises:
            ValueError: the rows were kept in memory and now go to a folder, or the other way round, or are another table's.
        """
        if (state is None) != (self.folder is not None):
            there = "in a folder" if state is None else "in memory"
            raise ValueError(f"the saved tracker kept its rows {there}, this one has folder={self.folder}")
        if state is not None:
            self._rows = [self._from_bytes(state)]
        self.drop_from(step)

    def _from_bytes(self, state: Tensor) -> Any:
        import pyarrow as pa

        try:
            table = pa.ipc.open_stream(pa.py_buffer(state.cpu().numpy().tobytes())).read_all()
        except pa.ArrowException as error:
            raise ValueError(f"the saved rows are damaged: {error}") from error
        if table.schema != self.schema:
            raise ValueError(f"the saved rows have columns {table.schema.names}, this table {self.schema.names}")
        return table
