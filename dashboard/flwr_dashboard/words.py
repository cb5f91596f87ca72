"""Numbers and names as people read them.

Every text that comes from a log goes through ``clean``; escaping for HTML is the templates' work.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from flwr_dashboard.log import Record, is_number

MAX_TEXT = 300
"""Characters shown of any text of a log."""


def clean(value: object, most: int = MAX_TEXT) -> str:
    """Return a text without control characters or anything that turns its direction round."""
    if type(value) is str and len(value) <= most and value.isprintable():
        return value
    text = value if isinstance(value, str) else _scalar(value)
    cut = text if len(text) <= most else text[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in cut)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if _nested(value):
        return "[…]"
    if isinstance(value, int) and not is_number(value):
        return "a huge number"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(record: Mapping[str, Any], key: str) -> float | None:
    """Return the number under ``key``; None where there is none."""
    value = record.get(key)
    return float(value) if is_number(value) else None  # type: ignore[arg-type]


def whole(record: Mapping[str, Any], key: str) -> int:
    """Return the count under ``key``; 0 where there is none."""
    value = record.get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def text(record: Mapping[str, Any], key: str) -> str:
    """Return the text under ``key``, clean; empty where there is none."""
    return clean(record.get(key, ""))


def numbers(value: object, most: int = 64) -> dict[str, float]:
    """Return the numbers of a mapping by their clean names."""
    if not isinstance(value, Mapping):
        return {}
    found = {clean(k, 60): float(v) for k, v in value.items() if is_number(v)}
    return dict(list(found.items())[:most])


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as per cent: 0.961 -> 96.1 %."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, signed."""
    return "–" if difference is None else f"{100 * difference:+.1f} pts".replace("-", "−")


def decimal(value: float | None) -> str:
    """Return a loss or another measure with three digits that tell something."""
    if value is None:
        return "–"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or not value else f"{value:.2e}"


def size(count: float) -> str:
    """Return bytes as people say them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Return ``seconds`` as people say them: 4.2 s, 48 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    count = round(seconds)
    if count < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{count} s"
    if count < 3600:
        return f"{count // 60} min {count % 60:02d} s"
    if count < 86400:
        return f"{count // 3600} h {count % 3600 // 60:02d} min"
    return f"{count // 86400} d {count % 86400 // 3600} h"


def ago(seconds: float) -> str:
    """Return how long ago, coarsely, so that a list does not change at every look."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "now"


def client_name(client: str) -> str:
    """Return a client's short name: a partition id as it is, the end of a node's long number."""
    if client.startswith("-"):
        return "all"
    return client if len(client) <= 6 else "…" + client[-5:]


def whose(client: str) -> str:
    """Return a client in words, or what stands for all: an aggregate's id is below 0."""
    return "all clients" if client.startswith("-") else f"client {client_name(client)}"


def sentence(record: Record) -> str:
    """Return an event in words; a kind that is not known here as its fields."""
    say = _SENTENCES.get(str(record["kind"]))
    if say is not None:
        return say(record)
    fields = {k: v for k, v in record.items() if k not in ("v", "time", "kind", "round")}
    return ", ".join(
        f"{clean(k, 40)} {clean(v, 60)}" for k, v in list(fields.items())[:12] if not _nested(v)
    )


def _nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _who(record: Record) -> str:
    if record.get("partition_id") is None:
        return "a stray reply"
    return whose(clean(record["partition_id"]))


def _scores(record: Record) -> str:
    said = numbers(record.get("accuracy"), 6)
    return ", ".join(f"{name} {percent(value)}" for name, value in said.items()) or "not scored"


def _run_start(r: Record) -> str:
    how = "goes on from its checkpoint" if r.get("resumed") is True else "begins"
    return f"the run {how}: {text(r, 'method')}, {whole(r, 'rounds')} rounds"


def _run_end(r: Record) -> str:
    reason = text(r, "reason")
    how = {"completed": "is complete", "failed": "failed", "stopped": "was stopped"}
    return f"the run {how.get(str(r.get('status')), 'ended')}" + (f": {reason}" if reason else "")


def _spent(r: Mapping[str, Any]) -> str:
    known, unknown = r.get("clients"), whole(r, "unknown")
    count = len(known) if isinstance(known, Mapping) else 0
    if unknown and not count:
        return (
            f"what {unknown} asked clients have spent is not known: none has said how many images "
            "it has"
        )
    who = f"{count} clients" if unknown else "clients"
    rest = f"; of {unknown} others that were asked it is not known" if unknown else ""
    return (
        f"{who} have spent at most epsilon {decimal(number(r, 'epsilon'))} at delta "
        f"{number(r, 'delta')}{rest}"
    )


def _reply(r: Record) -> str:
    loss = f", loss {decimal(number(r, 'train_loss'))}" if number(r, "train_loss") else ""
    spent = f", {duration(number(r, 'seconds'))}" if number(r, "seconds") is not None else ""
    return f"{_who(r)}: {whole(r, 'num_examples')} examples{loss}{spent}"


def _arrived(r: Record) -> str:
    said = f" with an error: {text(r, 'error')}" if r.get("error") else ""
    return f"{_who(r)} replied after {duration(number(r, 'seconds'))}{said}"


def _round_end(r: Record) -> str:
    kept = f"; the model stays as it was: {text(r, 'kept')}" if r.get("kept") else ""
    return f"round {r['round']} done: {_scores(r)} in {duration(number(r, 'seconds'))}{kept}"


def _distilled(r: Record) -> str:
    stopped = f" ({text(r, 'stopped')})" if r.get("stopped") else ""
    first, last = decimal(number(r, "first_loss")), decimal(number(r, "last_loss"))
    return (
        f"{_who(r)} distilled: {whole(r, 'num_images')} images, matching loss {first} → {last}, "
        f"{duration(number(r, 'seconds'))}{stopped}"
    )


def _online(r: Record) -> str:
    nodes, out = r.get("nodes"), r.get("left_out")
    count = len(nodes) if isinstance(nodes, dict) else 0
    rest = f", {len(out)} left out" if isinstance(out, dict) and out else ""
    return f"{count} clients online{rest}"


def _round_start(r: Record) -> str:
    asked = r.get("clients")
    count = len(asked) if isinstance(asked, list) else 0
    return f"round {r['round']} begins: {count} of {whole(r, 'online')} clients are asked"


_SENTENCES: Mapping[str, Callable[[Record], str]] = {
    "run-start": _run_start,
    "run-end": _run_end,
    "round-start": _round_start,
    "round-end": _round_end,
    "client-asked": lambda r: f"{_who(r)} is asked ({text(r, 'phase')})",
    "reply-arrived": _arrived,
    "client-reply": _reply,
    "client-rejected": lambda r: f"{_who(r)} set aside ({text(r, 'reply')}): {text(r, 'reason')}",
    "client-clipped": lambda r: (
        f"{_who(r)} claims {decimal(number(r, 'claimed'))} ({text(r, 'what')}), of which "
        f"{decimal(number(r, 'counted'))} count"
    ),
    "client-disbelieved": lambda r: (
        f"{_who(r)} not believed: the others' images do not bear its reply out"
    ),
    "client-scored": lambda r: f"{_who(r)} scores {percent(number(r, 'accuracy'))}",
    "clients-online": _online,
    "privacy-spent": _spent,
    "distill-progress": lambda r: (
        f"{_who(r)} distils, iteration {whole(r, 'iteration')} of {whole(r, 'iterations')}, "
        f"loss {decimal(number(r, 'loss'))}"
    ),
    "distilled": _distilled,
    "train-progress": lambda r: (
        f"{text(r, 'model')} trains, epoch {whole(r, 'epoch')} of {whole(r, 'epochs')}, "
        f"loss {decimal(number(r, 'loss'))}"
    ),
    "trained": lambda r: (
        f"{text(r, 'model')} trained on {whole(r, 'images')} images, "
        f"{duration(number(r, 'seconds'))}"
    ),
    "training-failed": lambda r: f"{text(r, 'model')} could not be trained: {text(r, 'reason')}",
    "scored": lambda r: f"scored: {_scores(r)}",
    "control-scored": lambda r: f"the prior alone: {_scores(r)}",
    "phase-start": lambda r: f"{text(r, 'phase')} begins",
    "phase-end": lambda r: f"{text(r, 'phase')} took {duration(number(r, 'seconds'))}",
    "heartbeat": lambda r: f"alive, {number(numbers(r.get('load')), 'rss_mb') or 0:.0f} MB",
}
"""Kind -> how it is said."""
