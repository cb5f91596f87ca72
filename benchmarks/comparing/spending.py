"""What a run spent, and on which device: seconds of two devices are not comparable."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from comparing.store import Record

CPU = "cpu"
WHOM = ("clients", "server")


def device_of(record: Record, whom: str) -> str:
    """Return the name of the device on which ``whom`` computed; several are joined."""
    # A record that does not say is of a time when there was but one.
    names = {done.get(f"{whom}_on", CPU) for done in record["rounds"]}
    return " and ".join(sorted(names))


def seconds(done: dict[str, Any], whom: str) -> float:
    """Return what ``whom`` spent in a round: of a processor, or on the clock beside a GPU."""
    spent: dict[str, float] = done[whom]
    return spent["cpu"] if done.get(f"{whom}_on", CPU) == CPU else spent["wall"]


def usual_device(records: Sequence[Record], whom: str) -> str:
    """Return the device of most runs; "" where no run has a round."""
    found = Counter(device_of(record, whom) for record in records if record["rounds"])
    return found.most_common(1)[0][0] if found else ""


def of_one_device(records: Sequence[Record], whom: str) -> list[Record]:
    """Return the runs whose seconds of ``whom`` may stand beside each other."""
    usual = usual_device(records, whom)
    return [r for r in records if not r["rounds"] or device_of(r, whom) == usual]


def where_made(records: Sequence[Record]) -> str:
    """Return a sentence that says on which devices clients and server computed."""
    rows = {
        whom: {
            name: [r["label"] for r in records if r["rounds"] and device_of(r, whom) == name]
            for name in dict.fromkeys(device_of(r, whom) for r in records if r["rounds"])
        }
        for whom in WHOM
    }
    if not any(rows.values()):
        return ""
    return "; ".join(f"{whom} on {_places(by_name)}" for whom, by_name in rows.items()) + "."


def _places(by_name: dict[str, list[str]]) -> str:
    if len(by_name) == 1:
        return next(iter(by_name))
    return ", ".join(f"{n} ({', '.join(dict.fromkeys(labels))})" for n, labels in by_name.items())
