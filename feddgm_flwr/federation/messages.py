"""The wire format: records to typed values and back; every key name lives here.

A client's reply is Flower's own contract (one ArrayRecord, one MetricRecord). What
arrives is checked here, once: a reply is a ``ClientUpdate`` or a ``Rejection`` with a
sentence, never an exception. Knows no data set and no strategy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from feddgm_flwr.core.evaluation import Evaluation
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.models import SURROGATE
from feddgm_flwr.core.params import Params, all_finite, distance, norm
from feddgm_flwr.core.state import ClientUpdate, Extra

T = TypeVar("T")

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"

EXTRA = "extra"
"""Records of what a method adds, tensors and numbers, in either direction."""
EXTRA_NUMBERS = "extra-numbers"

SERVER_ROUND = "server-round"
NUM_EXAMPLES = "num-examples"
PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"
SURROGATE_WIDTH = "surrogate-width"
DATA_DIR = "data-dir"
TRAIN_LOSS = "train-loss"
SECONDS = "seconds"
LABEL_COUNTS = "label-counts"
ACCURACY = "accuracy"
LOSS = "loss"

WHOAMI = "whoami"
"""Name of the query that asks a node for its partition id."""

MAX_PARTITION_ID = 10**9
MAX_PARTITIONS = 10**5
"""Larger than any federation's ids, and than the number of parts of any data set."""
MAX_EXAMPLES = 10**9
"""More images than any client has."""
MAX_LOSS = 1e6
"""Largest believable mean loss, either way."""
MAX_MOVEMENT = 1000.0
"""Largest believable |theta_i - theta_t|, in units of |theta_t| + 1."""


REASON_LENGTH = 300
"""Characters kept of a reason: a client may have written a book."""


@dataclass(frozen=True)
class Rejection:
    """Why a reply is set aside, as one sentence, safe to log whatever the client wrote."""

    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", harmless(self.reason))


def harmless(text: str) -> str:
    """Return ``text`` cut to a length, with what a terminal would obey spelt out."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text[: REASON_LENGTH + 1]
    )
    return escaped if len(escaped) <= REASON_LENGTH else escaped[: REASON_LENGTH - 3] + "..."


@dataclass(frozen=True)
class Identity:
    """Who a node is.

    Attributes
    ----------
    num_partitions
        Parts that the data were divided into; 0 for a device with data of its own.
    surrogate_width
        Width of the surrogate that the device can bear; 0 where it does not say.
    """

    partition_id: int
    num_partitions: int
    surrogate_width: int = 0

    @classmethod
    def of(cls, node_config: Mapping[str, bool | float | int | str]) -> "Identity":
        """Read a node's identity from its node config.

        Raises
        ------
        ValueError
            An identity is missing or impossible.
        """
        own_data = bool(node_config.get(DATA_DIR))
        partition_id = node_config.get(PARTITION_ID)
        count = 0 if own_data else node_config.get(NUM_PARTITIONS)
        if not _is_count(partition_id) or partition_id > MAX_PARTITION_ID:
            raise ValueError(
                f"node-config {PARTITION_ID} must be a whole number from 0 to {MAX_PARTITION_ID}, "
                f"got {partition_id!r}; start the SuperNode with --node-config "
                f"'{PARTITION_ID}=0 ...', another number for each"
            )
        if not _is_count(count) or not (own_data or partition_id < count <= MAX_PARTITIONS):
            raise ValueError(
                f"node-config {NUM_PARTITIONS} must be a whole number greater than "
                f"{PARTITION_ID} = {partition_id}, at most {MAX_PARTITIONS}, got {count!r}; "
                f"set it, or {DATA_DIR} for a device with data of its own"
            )
        width = node_config.get(SURROGATE_WIDTH, 0)
        if not _is_count(width):
            raise ValueError(
                f"node-config {SURROGATE_WIDTH} must be a whole number >= 0, got {width!r}; set "
                "it to one of the run's widths, or leave it out"
            )
        return cls(partition_id, count, width)


def task_content(task: Task) -> RecordDict:
    """Return what a client is sent."""
    config = ConfigRecord({SERVER_ROUND: task.server_round})
    content = RecordDict({ARRAYS: to_record(task.params), CONFIG: config})
    _add_extra(content, task.extra)
    return content


def read_task(message: Message) -> Task:
    """Return what ``task_content`` put in."""
    server_round = message.content.config_records[CONFIG][SERVER_ROUND]
    params = from_record(message.content.array_records[ARRAYS])
    return Task(params, _int(server_round), _read_extra(message.content))


def reply_content(update: ClientUpdate, *, train_loss: float | None, seconds: float) -> RecordDict:
    """Return a client's reply.

    The loss, label counts and a method's addition travel only where there are any.
    """
    metrics = MetricRecord(
        {
            NUM_EXAMPLES: update.num_examples,
            PARTITION_ID: update.partition_id,
            SECONDS: seconds,
        }
    )
    if train_loss is not None:
        metrics[TRAIN_LOSS] = train_loss
    if update.label_counts is not None:
        metrics[LABEL_COUNTS] = list(update.label_counts)
    content = RecordDict({ARRAYS: to_record(update.params), METRICS: metrics})
    _add_extra(content, update.extra)
    return content


def _add_extra(content: RecordDict, extra: Extra) -> None:
    if extra.tensors:
        content[EXTRA] = to_record(extra.tensors)
    if extra.numbers:
        content[EXTRA_NUMBERS] = MetricRecord(dict(extra.numbers))


def _read_extra(content: RecordDict) -> Extra:
    tensors, numbers = content.array_records.get(EXTRA), content.metric_records.get(EXTRA_NUMBERS)
    return Extra(
        tensors={} if tensors is None else from_record(tensors),
        numbers={} if numbers is None else {k: _number(v) for k, v in numbers.items()},
    )


@dataclass(frozen=True)
class Expected:
    """What a reply must be like.

    Attributes
    ----------
    template
        The surrogate that the client was sent: names, shapes and types, and the point from which
        its reply must have moved. Empty where a reply holds no parameters.
    counts
        Whether it shares the numbers of its labels.
    wrong
        Says why what a method adds to so many examples cannot be believed, or "".
    surrogate
        Name of that surrogate.
    may_stay
        Whether it may be just what was sent: some losses leave a client of one class no gradient.
    """

    template: Params
    num_classes: int
    counts: bool
    wrong: Callable[[Extra, int], str]
    surrogate: str = SURROGATE
    may_stay: bool = False


def parse_reply(message: Message, expected: Expected) -> ClientUpdate | Rejection:
    """Return what a client's reply says, or why it cannot be believed."""
    template = expected.template
    if message.has_error():
        return Rejection(f"the client failed: {message.error.reason}")
    try:
        arrays = message.content.array_records[ARRAYS]
        metrics = message.content.metric_records[METRICS]
        params = from_record(arrays)
        extra = _read_extra(message.content)
    except Exception as error:  # the bytes come from elsewhere and may be anything
        return Rejection(f"the reply cannot be read ({type(error).__name__}: {error})")
    reason = (
        _wrong_metrics(metrics, expected.num_classes)
        or _wrong_arrays(params, template)
        or _wrong_movement(params, template, may_stay=expected.may_stay)
        or ("" if expected.counts else _unasked_counts(metrics))
        or expected.wrong(extra, _int(metrics[NUM_EXAMPLES]))
        or ("" if all_finite(extra.tensors) else "what it sends beside holds NaN or infinity")
    )
    if reason:
        return Rejection(reason)
    counts = metrics.get(LABEL_COUNTS)
    return ClientUpdate(
        partition_id=_int(metrics[PARTITION_ID]),
        params={name: params[name] for name in template},
        num_examples=_int(metrics[NUM_EXAMPLES]),
        label_counts=tuple(map(_int, counts)) if isinstance(counts, list) else None,
        extra=extra,
        surrogate=expected.surrogate,
    )


def reported(message: Message) -> dict[str, float | None]:
    """Return a parsed reply's training loss and seconds; None where unsaid."""
    metrics = message.content.metric_records[METRICS]
    found = {"train_loss": metrics.get(TRAIN_LOSS), "seconds": metrics.get(SECONDS)}
    return {k: float(v) if isinstance(v, int | float) else None for k, v in found.items()}


def evaluation_content(evaluation: Evaluation, num_examples: int) -> RecordDict:
    """Return a client's score of the surrogate on its own test images."""
    metrics = MetricRecord(
        {
            ACCURACY: evaluation.accuracy,
            LOSS: evaluation.loss,
            NUM_EXAMPLES: num_examples,
        }
    )
    return RecordDict({METRICS: metrics})


def guarded(parse: Callable[[], T]) -> T | Rejection:
    """Return what ``parse`` returns, or a rejection of whatever it raises.

    What a client sends may be anything, and so may what reading it meets.
    """
    try:
        return parse()
    except Exception as error:
        return Rejection(f"the reply cannot be judged ({type(error).__name__}: {error})")


def said_examples(reply: Message) -> int:
    """Return the number of images that a reply says it trained on; 0 where it cannot be read."""
    examples = guarded(lambda: reply.content.metric_records[METRICS].get(NUM_EXAMPLES))
    return examples if _is_count(examples) and examples <= MAX_EXAMPLES else 0


_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


def expired(reply: Message) -> bool:
    """Return whether this is the SuperLink's word that a message's, or a reply's, time is up."""
    return reply.has_error() and reply.error.code in _EXPIRED


def parse_evaluation(message: Message) -> tuple[Evaluation, int] | Rejection:
    """Return a client's score and its number of images, or why it is no score."""
    if message.has_error():
        return Rejection(f"the client failed: {message.error.reason}")
    metrics = message.content.metric_records.get(METRICS, MetricRecord())
    accuracy, loss = metrics.get(ACCURACY), metrics.get(LOSS)
    if not _is_finite(accuracy) or not 0 <= accuracy <= 1:
        return Rejection(f"{ACCURACY} must be between 0 and 1, got {accuracy!r}")
    if not _is_finite(loss) or abs(loss) > MAX_LOSS:
        return Rejection(f"{LOSS} must be between -{MAX_LOSS:g} and {MAX_LOSS:g}, got {loss!r}")
    count = metrics.get(NUM_EXAMPLES)
    if not _is_count(count) or not 0 < count <= MAX_EXAMPLES:
        return Rejection(f"{NUM_EXAMPLES} must be a whole number >= 1, got {count!r}")
    return Evaluation(float(accuracy), float(loss)), int(count)


def identity_content(identity: Identity) -> RecordDict:
    """Return a node's answer to the query ``whoami``."""
    metrics = MetricRecord(
        {
            PARTITION_ID: identity.partition_id,
            NUM_PARTITIONS: identity.num_partitions,
            SURROGATE_WIDTH: identity.surrogate_width,
        }
    )
    return RecordDict({METRICS: metrics})


def parse_identity(message: Message) -> Identity | Rejection:
    """Return who a node says it is, or why that cannot be believed."""
    if message.has_error():
        return Rejection(f"the client failed: {message.error.reason}")
    metrics = message.content.metric_records.get(METRICS, MetricRecord())
    partition_id, count = metrics.get(PARTITION_ID), metrics.get(NUM_PARTITIONS)
    width = metrics.get(SURROGATE_WIDTH)
    if not _is_count(partition_id) or not _is_count(count):
        return Rejection(
            f"{PARTITION_ID} and {NUM_PARTITIONS} must be whole numbers >= 0, got "
            f"{partition_id!r} and {count!r}"
        )
    if partition_id > MAX_PARTITION_ID or count > MAX_PARTITIONS:
        return Rejection(
            f"{PARTITION_ID} and {NUM_PARTITIONS} must be at most {MAX_PARTITION_ID} and "
            f"{MAX_PARTITIONS}, got {partition_id} and {count}"
        )
    if count and partition_id >= count:
        return Rejection(
            f"{PARTITION_ID} must be below {NUM_PARTITIONS} = {count}, got {partition_id}"
        )
    if not _is_count(width):
        return Rejection(f"{SURROGATE_WIDTH} must be a whole number >= 0, got {width!r}")
    return Identity(partition_id, count, width)


def to_record(params: Params) -> ArrayRecord:
    """Return ``params`` as an ArrayRecord, names in order, types kept."""
    return ArrayRecord({name: p.detach().cpu() for name, p in params.items()})


def from_record(record: ArrayRecord) -> Params:
    """Return an ArrayRecord's tensors, names in order, types kept."""
    return dict(record.to_torch_state_dict())


def content_bytes(message: Message) -> int:
    """Return the size of a message's records; 0 for one that carries an error."""
    return size_of(message.content) if message.has_content() else 0


def size_of(content: RecordDict) -> int:
    """Return the size of records in bytes, as they are before Flower packs them."""
    return sum(map(_record_bytes, content.values()))


def _record_bytes(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    # Flower's own count of a ConfigRecord raises at an empty text.
    if not isinstance(record, ConfigRecord):
        return record.count_bytes()
    values = [(k, v if isinstance(v, list) else [v]) for k, v in record.items()]
    return sum(len(k) + sum(map(_value_bytes, many)) for k, many in values)


def _value_bytes(value: object) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8


def _wrong_metrics(metrics: MetricRecord, num_classes: int) -> str:
    """Return what is wrong with a reply's numbers, or ""."""
    partition_id, examples = metrics.get(PARTITION_ID), metrics.get(NUM_EXAMPLES)
    if not _is_count(partition_id):
        return f"{PARTITION_ID} must be a whole number >= 0, got {partition_id!r}"
    if not _is_count(examples) or not 0 < examples <= MAX_EXAMPLES:
        return f"{NUM_EXAMPLES} must be a whole number from 1 to {MAX_EXAMPLES}, got {examples!r}"
    counts = metrics.get(LABEL_COUNTS)
    if counts is None:
        return ""
    if not isinstance(counts, list) or not all(map(_is_count, counts)):
        return f"{LABEL_COUNTS} must be a list of whole numbers >= 0, got {counts!r}"
    if len(counts) != num_classes or sum(counts) != examples:
        return (
            f"{LABEL_COUNTS} must be {num_classes} numbers that add up to "
            f"{NUM_EXAMPLES} = {examples}, got {counts!r}"
        )
    return ""


def _unasked_counts(metrics: MetricRecord) -> str:
    unasked = metrics.get(LABEL_COUNTS) is not None
    return f"it sends {LABEL_COUNTS}, which nobody asked for" if unasked else ""


def _wrong_arrays(params: Params, template: Params) -> str:
    """Return what is wrong with a reply's tensors, or ""."""
    if params.keys() != template.keys():
        missing, extra = (
            sorted(template.keys() - params),
            sorted(params.keys() - template),
        )
        return f"it has other parameters: missing {missing}, unknown {extra}"
    for name, expected in template.items():
        got = params[name]
        if got.shape != expected.shape:
            return f"{name} must have shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        if got.dtype != expected.dtype:
            return f"{name} must be {expected.dtype}, got {got.dtype}"
    return "" if all_finite(params) else "its parameters hold NaN or infinity"


def _wrong_movement(params: Params, template: Params, *, may_stay: bool) -> str:
    """Return what is wrong with how far the client went, or ""."""
    if not template:
        return ""
    if not may_stay and all(torch.equal(params[name], template[name]) for name in template):
        return "it did not move from the broadcast surrogate, so it tells nothing"
    moved, bound = distance(template, params), MAX_MOVEMENT * (norm(template) + 1)
    return f"it moved by {moved:.3g}, beyond the believable {bound:.3g}" if moved > bound else ""


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: object) -> float | int:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a finite number was expected, got {value!r}")
    return value


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
