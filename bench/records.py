"""The results files: one JSON line per measurement, appended, so that a later line replaces an earlier one."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
LAYER_KEY = ("case", "mode", "provider")  # what tells run.py's measurements apart


def append(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def newest(kind: str = "cpu") -> Path:
    """The last of results/<date>-<kind>.jsonl."""
    found = sorted(RESULTS.glob(f"????-??-??-{kind}.jsonl"))
    if not found:
        raise SystemExit(f"no {kind} results in {RESULTS.name}/: run `make bench` first")
    return found[-1]


def read(path: Path, key: Sequence[str] = LAYER_KEY) -> list[Record]:
    """The file's measurements with its last line's machine and number of threads; of those with equal `key`, the latest."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    if not records:
        raise SystemExit(f"{path}: no measurements")
    setup = _setup(records[-1])
    latest = {tuple(str(r[field]) for field in key): r for r in records if _setup(r) == setup}
    return list(latest.values())


def _setup(record: Record) -> Record:
    """What has to be equal for measurements to be compared: the number of threads, and all of the machine but the date."""
    return {key: value for key, value in record["machine"].items() if key not in ("date", "torch_threads")} | {
        "threads": record["threads"]
    }
