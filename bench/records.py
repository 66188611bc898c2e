"""Read and write the results files, one JSON line per measurement. Lines are appended; later lines replace earlier ones."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
LAYER_KEY = ("case", "mode", "provider")  # identifies a measurement of run.py


def append(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def newest(kind: str = "cpu-avx*") -> Path:
    """Return the newest file results/<date>-<kind>.jsonl.

    The kind may be a pattern. The default matches the results of run.py for any instruction set.
    """
    found = sorted(RESULTS.glob(f"????-??-??-{kind}.jsonl"))
    if not found:
        raise SystemExit(f"no {kind} results in {RESULTS.name}/: run `make bench` first")
    return found[-1]


def read(path: Path, key: Sequence[str] = LAYER_KEY) -> list[Record]:
    """Return the measurements with the machine and threads of the file's last line, and the latest one for every `key`."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    if not records:
        raise SystemExit(f"{path}: no measurements")
    setup = _setup(records[-1])
    latest = {tuple(str(r[field]) for field in key): r for r in records if _setup(r) == setup}
    return list(latest.values())


def _setup(record: Record) -> Record:
    """Return the fields that comparable measurements share: the number of threads, and the machine except for the date."""
    return {key: value for key, value in record["machine"].items() if key not in ("date", "torch_threads")} | {
        "threads": record["threads"]
    }
