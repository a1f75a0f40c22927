import base64
import csv
import io
import sys

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.medclm.training.blobs import blob_set
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.evaluation.exports import lmms_eval, vlmevalkit
from trimtab.medclm.evaluation.questions import questions_of


@pytest.fixture
def questions(tmp_path):
    return questions_of(DataSetFolder(blob_set(tmp_path / "set", images=9)), ["test"])


def test_vlmevalkit_table(questions, tmp_path):
    file = vlmevalkit(questions, tmp_path / "MedCLM.tsv")
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert len(rows) == len(questions)
    for row, question in zip(rows, questions, strict=True):
        assert {"A": row["A"], "B": row["B"]}[row["answer"]] == question.answer
        assert Image.open(io.BytesIO(base64.b64decode(row["image"]))).size == (32, 32)


def test_lmms_eval_task(questions, tmp_path, monkeypatch):
    task = yaml.load(lmms_eval(questions, tmp_path / "task").read_text().replace("!function ", ""), yaml.SafeLoader)
    rows = pq.read_table(task["dataset_kwargs"]["data_files"]["test"]).to_pylist()
    monkeypatch.syspath_prepend(str(tmp_path / "task"))
    sys.modules.pop("utils", None)
    import utils

    assert task["doc_to_text"] == "utils.doc_to_text"
    assert utils.process_results(rows[0], [f"Answer: {questions[0].answer}"]) == {"closed": 1.0}
    assert utils.doc_to_visual(rows[0])[0].mode == "RGB"
    assert "Reason first" in utils.doc_to_text(rows[0])
    sys.modules.pop("utils", None)
    with pytest.raises(ValueError, match="no questions"):
        lmms_eval([], tmp_path)
