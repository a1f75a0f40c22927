"""Question sets for other evaluation harnesses: lmms-eval and VLMEvalKit."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from trimtab.files import replace_atomically, write_text
from trimtab.medclm.evaluation.generation import picture_of
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.prompts import instruction

TASK = """task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 192
  temperature: 0
  do_sample: false
metric_list:
  - metric: closed
    aggregation: mean
    higher_is_better: true
  - metric: f1
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1
"""
FUNCTIONS = '''"""What the task file calls; rules of trimtab.medclm.evaluation.metrics: closed.1, named.1, f1.1."""

import io
from pathlib import Path

from PIL import Image

from trimtab.medclm.evaluation.metrics import scores
from trimtab.medclm.evaluation.parsing import parse_reply
from trimtab.medclm.evaluation.questions import Question


def doc_to_visual(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    given = {"choices": tuple(doc["choices"]), "closed": doc["closed"]}
    question = Question(doc["id"], Path("."), doc["question"], doc["answer"], doc["cluster"], **given)
    found = scores(question, parse_reply(results[0]))
    names = {"closed.1": "closed", "named.1": "closed", "f1.1": "f1"}
    return {names[rule]: value for rule, value in found.items() if rule in names}
'''


def lmms_eval(questions: Sequence[Question], folder: Path, name: str = "medclm") -> Path:
    """A task folder for `lmms_eval --include_path FOLDER --tasks NAME`: task file, functions, Parquet with images.

    Returns:
        The task file.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("there are no questions to export")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": one.name, "cluster": one.cluster, "question": instruction(one.question, reason=one.reason),
            "answer": one.answer, "choices": list(one.choices), "closed": one.closed, "stage": one.stage,
            "domain": one.domain, "kind": one.kind,
            "image": {"bytes": _png(one), "path": one.image.name},
        }
        for one in questions
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    data = folder / f"{name}.parquet"
    replace_atomically(data, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    write_text(folder / "utils.py", FUNCTIONS)
    write_text(folder / f"{name}.yaml", TASK.format(name=name, file=json.dumps(str(data.resolve()))))
    return folder / f"{name}.yaml"


def vlmevalkit(questions: Sequence[Question], file: Path) -> Path:
    """A TSV for VLMEvalKit (index, image as base64, question, answer, category; A-D where there are choices).

    Put it into `$LMUData` and name it with `--data`; multiple choice where every question has choices, else open VQA.

    Returns:
        `file`.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("there are no questions to export")
    letters = "ABCDEFGH"[: max(len(one.choices) for one in questions)] if all(one.choices for one in questions) else ""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as handle:
            out = csv.writer(handle, delimiter="\t", lineterminator="\n")
            out.writerow(["index", "image", "question", *letters, "answer", "category"])
            for number, one in enumerate(questions):
                options = [*one.choices, *[""] * (len(letters) - len(one.choices))] if letters else []
                answer = letters[[c.lower() for c in one.choices].index(one.answer.lower())] if letters else one.answer
                image = base64.b64encode(_png(one)).decode()
                out.writerow(
                    [
                        number,
                        image,
                        instruction(one.question, reason=one.reason),
                        *options,
                        answer,
                        one.stage or one.kind,
                    ]
                )

    replace_atomically(file, write)
    return file


def _png(question: Question) -> bytes:
    stream = io.BytesIO()
    picture_of(question).save(stream, "PNG")
    return stream.getvalue()
