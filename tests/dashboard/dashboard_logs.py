"""Logs for the dashboard's tests: a small run whose every number is known, and pictures for it."""

import json
import struct
import zlib

T0 = 1_700_000_000.0


def line(kind, after=0.0, number=0, **fields):
    return json.dumps({"v": 1, "time": T0 + after, "kind": kind, "round": number, **fields})


def start(**fields):
    said = {
        "method": "feddgm",
        "rounds": 3,
        "seed": 7,
        "resumed": False,
        "config": {"data.name": "mnist5k", "client.momentum": 0.0, "recipe": "feddgm"},
        "classes": ["cat", "dog"],
        "versions": {"flwr": "1.31.0"},
        "machine": {"host": "elsewhere"},
        "pid": 4,
        "said": ["data.name"],
    }
    return line("run-start", **{**said, **fields})


def round_of(number, accuracy, *, late=(), began=0.0):
    """Return a round of two clients that takes 30 s: 10 train, 20 distil, 1 MB up, 2 MB down."""
    lines = [
        line("round-start", began, number, rounds=3, clients=[0, 1], online=2),
        line("phase-start", began, number, phase="clients"),
    ]
    for client in (0, 1):
        lines.append(
            line("client-asked", began, number, partition_id=client, phase="clients", num_bytes=9)
        )
        answered = {"partition_id": client, "num_examples": 50, "train_loss": 0.25}
        answered |= {"seconds": 4.0, "num_bytes": 500_000}
        bad = {"partition_id": client, "reply": "late", "reason": "no reply within 9 s"}
        lines.append(
            line("client-rejected", began + 9, number, **bad)
            if client in late
            else line("client-reply", began + 9, number, **answered)
        )
    lines.append(line("phase-end", began + 10, number, phase="clients", seconds=10.0))
    lines.append(line("phase-start", began + 10, number, phase="distill"))
    for client in {0, 1} - set(late):
        made = {"partition_id": client, "classes": [client], "num_images": 1, "iterations": 5}
        made |= {"first_loss": 1.0, "last_loss": 0.5, "student_lr": 0.1, "seconds": 8.0}
        lines.append(line("distilled", began + 20, number, **made, stopped="", eta_s=0.0))
    lines.append(line("phase-end", began + 30, number, phase="distill", seconds=20.0))
    sprite = {"path": f"images/sprite_{number}.png", "side": 2, "across": 2, "owners": [0, 1]}
    sprite |= {"labels": [0, 1], "weights": [30.0, 20.0], "num_images": 2}
    lines.append(line("sprite-written", began + 30, number, **sprite))
    grown = {"path": f"images/growth_{number}.png", "side": 2, "partition_id": 0, "labels": [0]}
    lines.append(line("growth-written", began + 30, number, **grown, iterations=[0, 2, 5]))
    end = {"accuracy": {"surrogate": accuracy}, "loss": {"surrogate": 0.5}, "seconds": 30.0}
    end |= {"bytes_up": 1_000_000, "bytes_down": 2_000_000, "replies": {"accepted": 2 - len(late)}}
    lines.append(line("round-end", began + 30, number, **end, kept="", eta_s=60.0, federated=None))
    return lines


def whole(*, late=(), ended=True):
    """Return the lines of a run of three rounds; in the second the clients ``late`` are late."""
    lines = [start(), line("control-scored", 1, accuracy={"surrogate": 0.5}, loss={}, metrics={})]
    for number, accuracy in ((1, 0.6), (2, 0.8), (3, 0.75)):
        began = 30.0 * (number - 1) + 2
        lines += round_of(number, accuracy, late=late if number == 2 else (), began=began)
    if ended:
        lines.append(line("run-end", 95, 3, status="completed", reason=""))
    return lines


def write(folder, lines=None):
    """Write a run with its pictures."""
    (folder / "images").mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(f"{x}\n" for x in lines or whole()))
    for number in (1, 2, 3, 4):
        (folder / f"images/sprite_{number}.png").write_bytes(png(4, 2, 60 * number))
        (folder / f"images/growth_{number}.png").write_bytes(png(2, 6, 50))
    return folder


def png(width, height, grey):
    """Return a grey picture."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + bytes([grey]) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data
