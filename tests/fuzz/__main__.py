"""`python -m tests.fuzz [KIND ...]`: damage files and read them; exit code 1 if anything but the documented happens."""

from __future__ import annotations

import argparse
import json
import resource
import sys

import torch

from tests.fuzz.kinds import KINDS
from tests.fuzz.running import run


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Parse and run; one line per kind and per fault, or JSON of the faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"default all: {', '.join(KINDS)}")
    parser.add_argument("--mutations", type=int, help="inputs of each kind; default its short form")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--json", action="store_true", help="print the faults as JSON")
    given = parser.parse_args()
    unknown = sorted(set(given.kinds) - set(KINDS))
    if unknown:
        parser.error(f"unknown kinds {unknown}; there are {', '.join(KINDS)}")
    torch.set_num_threads(1)  # a forked child has no helpers
    faults = []
    for name in given.kinds or KINDS:
        count = KINDS[name].short if given.mutations is None else given.mutations
        started = _processor_seconds()
        found = run(KINDS[name], given.first, count)
        faults += found
        if not given.json:
            print(
                f"{name:24} {count:8,} inputs {_processor_seconds() - started:7.1f} s {len(found):4} faults", flush=True
            )
            for fault in found:
                print(f"    {fault.number}: {fault.what}", flush=True)
    if given.json:
        print(json.dumps([vars(fault) for fault in faults]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
