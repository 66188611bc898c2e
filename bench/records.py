"""The results files: one JSON line per measurement, appended, so that a later line replaces an earlier one."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def append(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def newest() -> Path:
    """The last of results/<date>-cpu.jsonl."""
    found = sorted(RESULTS.glob("*-cpu.jsonl"))
    if not found:
        raise SystemExit(f"no results in {RESULTS.name}/: run bench/run.py first")
    return found[-1]


def read(path: Path) -> list[Record]:
    """The file's measurements with its last line's machine and number of threads; of each, the latest."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    if not records:
        raise SystemExit(f"{path}: no measurements")
    setup = _setup(records[-1])
    latest = {(r["case"], r["mode"], r["provider"]): r for r in records if _setup(r) == setup}
    return list(latest.values())


def _setup(record: Record) -> Record:
    """What has to be equal for measurements to be compared: all of the machine but the date."""
    return {key: value for key, value in record["machine"].items() if key != "date"}
