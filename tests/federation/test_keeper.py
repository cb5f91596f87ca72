"""Laws of keeping rounds: what a server half is asked, and what its answers do."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from flwr.app import Array
from inline_grid import InlineGrid, simulated
from inprocess_run import DEFAULTS, FAST, trained

import client_app
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.models import build_surrogate
from feddgm_flwr.core.params import params_of, weighted_mean
from feddgm_flwr.core.state import DistillReport, Extra, RoundReport, ServerState
from feddgm_flwr.core.synthetic import SyntheticSet
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.events import ClientAsked, ClientClipped, RoundEnd, RoundStart, Scored
from feddgm_flwr.federation import checkpoint
from feddgm_flwr.federation.keeper import RoundKeeper
from feddgm_flwr.federation.roster import TooFewClientsError
from feddgm_flwr.federation.screening import NoReplyError
from feddgm_flwr.methods.halves import ServerHalf
from feddgm_flwr.monitoring.results import Results, Scores

DIGITS = spec_of(DataConfig(name="digits"))


class Half:
    """A server half that notes what it is asked, and averages."""

    def __init__(self, spoil=lambda state: state, report=None):
        self.asked, self.spoil, self.report = [], spoil, report

    def __call__(self, state, updates, population):
        self.asked.append((state.server_round, [u.partition_id for u in updates], population))
        mean = weighted_mean([u.params for u in updates], [1] * len(updates))
        done = replace(state, server_round=state.server_round + 1, surrogate=mean)
        return self.spoil(done), self.report


class Kept:
    """A keeper after its rounds, with all that was told and shown."""

    def __init__(
        self,
        folder,
        half,
        *,
        clients=3,
        tamper=None,
        after=None,
        down=None,
        show=None,
        fails="",
        run=True,
        **said,
    ):
        said = {k.replace("__", ".").replace("_", "-"): v for k, v in said.items()}
        flat = {**DEFAULTS, **FAST, "method": "fedavg", **said}
        config = RunConfig.from_run_config(flat)
        params = params_of(build_surrogate(config.surrogate, DIGITS))
        self.first = ServerState(0, {k: torch.full_like(v, 0.01) for k, v in params.items()})
        self.told, self.shown, self.scored = [], [], []
        self.listen = lambda event: None
        self.grid = InlineGrid(client_app.app, flat, simulated(clients), tamper=tamper)
        more = {} if down is None else {"down": down}
        self.keeper = RoundKeeper(
            config,
            ServerHalf(advance=half, **more),
            self.first if after is None else after.state,
            num_classes=DIGITS.num_classes,
            prior="fingerprint",
            num_threads=1,
            results=Results.of(config) if after is None else after.results,
            out_dir=folder,
            emit=self.tell,
            score=self.score,
            show=show or (lambda number, report: self.shown.append((number, report))),
        )
        if run:
            with pytest.raises(NoReplyError, match=fails) if fails else nullcontext():
                self.keeper.run(self.grid)

    def tell(self, event):
        self.told.append(event)
        self.listen(event)

    def score(self, state):
        self.scored.append(state.server_round)
        return Scores({"surrogate": 0.5}, {"surrogate": float(state.server_round)})

    def of(self, kind):
        return [e for e in self.told if isinstance(e, kind)]


def test_a_half_gets_sorted_updates_and_the_whole_population(tmp_path):
    half = Half()
    kept = Kept(tmp_path, half, clients=5, rounds__fraction_train=0.4, num_server_rounds=3)
    assert [round_ for round_, _, _ in half.asked] == [0, 1, 2]
    for (_, heard, population), start in zip(half.asked, kept.of(RoundStart), strict=True):
        assert len(heard) == 2
        assert heard == sorted(heard) == list(start.clients)
        assert population == start.online == 5
    assert kept.scored == [0, 1, 2, 3]
    assert [e.loss["surrogate"] for e in kept.of(Scored)] == [0.0, 1.0, 2.0, 3.0]


def test_each_client_is_sent_what_the_half_has_for_it(tmp_path):
    def down(state, partition_id):
        return Extra(numbers={"yours": 10 * state.server_round + partition_id})

    kept = Kept(tmp_path, Half(), down=down)
    sent = [m.content["extra-numbers"]["yours"] for m in kept.grid.asked if trained(m)]
    assert sent == [0, 1, 2, 10, 11, 12]
    sizes = [e.num_bytes for e in kept.of(ClientAsked)]
    assert sum(sizes[:3]) == kept.of(RoundEnd)[0].bytes_down


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["surrogate", "global_models"])
def test_a_broken_new_state_is_not_taken(where, value, tmp_path, caplog):
    def spoil(state):
        broken = {"w": torch.tensor([value])}
        if where == "surrogate":
            return replace(state, surrogate=dict.fromkeys(state.surrogate, broken["w"]))
        return replace(state, global_models={"vit": broken})

    kept = Kept(tmp_path, Half(spoil), num_server_rounds=2, fails="no round of 2 .* NaN")
    assert [e.kept for e in kept.of(RoundEnd)] == ["the new one holds NaN or infinity"] * 2
    assert kept.keeper.state == replace(kept.first, server_round=2)
    assert "keeps the old model" in caplog.text


def test_without_a_usable_reply_the_half_is_not_asked(tmp_path):
    half = Half()

    def tamper(message, reply, partition_id):
        return None if trained(message) else reply

    kept = Kept(tmp_path, half, tamper=tamper, num_server_rounds=1, fails="no reply could be used")
    assert half.asked == []
    assert kept.of(RoundEnd)[0].kept == "no reply could be used"
    assert kept.of(RoundEnd)[0].replies["late"] == 3
    assert kept.keeper.state == replace(kept.first, server_round=1)


def test_a_report_is_recorded_saved_and_then_shown(tmp_path):
    report = DistillReport(2, (0, 7), 6, 30, 1.0, 0.4, 0.02, 1.5, "converged")
    half = Half(report=RoundReport((report,), SyntheticSet.empty(DIGITS)))
    kept = Kept(tmp_path, half, num_server_rounds=1)
    figures = {
        "partition_id": 2,
        "num_images": 6,
        "iterations": 30,
        "first_loss": 1.0,
        "last_loss": 0.4,
        "student_lr": 0.02,
        "seconds": 1.5,
        "stopped": "converged",
    }
    assert len(kept.of(RoundEnd)) == 1
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["rounds"][0]["distilled"] == [figures]
    assert [number for number, _ in kept.shown] == [1]


def test_a_picture_that_fails_costs_no_round(tmp_path):
    def full(number, report):
        raise OSError("no space")

    half = Half(report=RoundReport((), SyntheticSet.empty(DIGITS)))
    with pytest.raises(OSError, match="no space"):
        Kept(tmp_path, half, show=full, num_server_rounds=1)
    assert checkpoint.load(tmp_path).state.server_round == 1


def refusing(monkeypatch, times):
    """Let the disk refuse the first ``times`` checkpoints."""
    refused, save = [], checkpoint.save

    def full(folder, saved):
        if len(refused) < times:
            refused.append(saved.state.server_round)
            raise OSError(28, "No space left on device")
        save(folder, saved)

    monkeypatch.setattr(checkpoint, "save", full)
    return refused


def test_a_full_disk_costs_no_round_and_the_next_one_saves_all(tmp_path, monkeypatch, caplog):
    refused = refusing(monkeypatch, times=1)
    Kept(tmp_path, Half(), num_server_rounds=2)
    assert refused == [1]
    assert checkpoint.load(tmp_path).state.server_round == 2
    saved = json.loads((tmp_path / "result.json").read_text())
    assert [r["round"] for r in saved["rounds"]] == [1, 2]
    sentence = f"round 1 cannot be written to out-dir '{tmp_path}' (No space left on device); make"
    assert sentence in caplog.text
    assert "cannot be written" not in caplog.text.replace(sentence, "")


def test_at_the_end_the_server_insists(tmp_path, monkeypatch):
    refused = refusing(monkeypatch, times=5)
    Kept(tmp_path, Half(), num_server_rounds=2)
    assert refused == [1, 2, 2, 2, 2]
    assert checkpoint.load(tmp_path).state.server_round == 2


@pytest.mark.parametrize("room", [True, False])
def test_what_a_full_disk_refused_is_written_before_an_error_ends_the_run(
    room, tmp_path, monkeypatch, caplog
):
    refused = refusing(monkeypatch, times=2 if room else 100)
    kept = Kept(tmp_path, Half(), run=False, num_server_rounds=3)

    def leave(event):
        if isinstance(event, RoundEnd) and event.round == 2:
            kept.grid.contexts.clear()

    kept.listen = leave
    with pytest.raises(TooFewClientsError):
        kept.keeper.run(kept.grid)
    assert refused == ([1, 2] if room else [1, 2, 2])
    assert checkpoint.is_there(tmp_path) == room
    if room:
        assert checkpoint.load(tmp_path).state.server_round == 2
        assert len(checkpoint.load(tmp_path).results["rounds"]) == 2
    else:
        assert "round 2 cannot be written" in caplog.text.splitlines()[-1]


def test_an_error_between_a_round_and_its_record_writes_no_half_of_it(tmp_path, monkeypatch):
    refusing(monkeypatch, times=1)
    kept = Kept(tmp_path, Half(), run=False, num_server_rounds=3)

    def broken(state):
        if state.server_round == 2:
            raise KeyError("w")
        return Scores()

    kept.keeper._score = broken
    with pytest.raises(KeyError):
        kept.keeper.run(kept.grid)
    saved = checkpoint.load(tmp_path)
    assert (saved.state.server_round, len(saved.results["rounds"])) == (1, 1)


def test_a_checkpoint_is_saved_after_every_round(tmp_path):
    kept = Kept(tmp_path, Half())
    saved = checkpoint.load(tmp_path)
    assert saved.state.server_round == 2
    assert saved.prior == "fingerprint"
    assert saved.results["rounds"][1]["round"] == 2
    assert all(
        torch.equal(v, kept.keeper.state.surrogate[k]) for k, v in saved.state.surrogate.items()
    )


def test_rounds_go_on_from_the_state_given(tmp_path):
    first = Kept(tmp_path / "a", Half(), num_server_rounds=1)
    half = Half()
    second = Kept(tmp_path / "b", half, after=first.keeper, num_server_rounds=3)
    assert [asked[0] for asked in half.asked] == [1, 2]
    assert [e.round for e in second.of(RoundEnd)] == [2, 3]
    assert second.scored == [2, 3], "what was scored before is not scored again"


def test_nothing_is_left_to_do_after_the_last_round(tmp_path, caplog):
    half = Half()
    first = Kept(tmp_path / "a", Half(), num_server_rounds=1)
    again = Kept(tmp_path / "b", half, after=first.keeper, num_server_rounds=1)
    assert half.asked == again.told == []


def test_clients_scores_are_averaged_by_their_images(tmp_path):
    told = {0: (0.5, 1.0, 10), 1: (1.0, 3.0, 30), 2: (7.0, 1.0, 10)}

    def tamper(message, reply, partition_id):
        if message.metadata.message_type == "evaluate":
            accuracy, loss, count = told[partition_id]
            metrics = reply.content["metrics"]
            metrics["accuracy"], metrics["loss"], metrics["num-examples"] = accuracy, loss, count
        return reply

    kept = Kept(
        tmp_path,
        Half(),
        tamper=tamper,
        num_server_rounds=1,
        rounds__federated_evaluation=True,
    )
    assert kept.of(RoundEnd)[0].federated == {
        "accuracy": 35 / 40,
        "loss": 100 / 40,
        "examples": 40,
        "clients": 2,
    }


def lost(*rounds):
    """Return a tamper that loses client 1's and 2's training in some rounds."""

    def tamper(message, reply, partition_id):
        here = trained(message) and message.content["config"]["server-round"] in rounds
        return None if here and partition_id else reply

    return tamper


def test_a_round_with_too_few_replies_keeps_the_old_model(tmp_path):
    half = Half()
    kept = Kept(tmp_path, half, tamper=lost(1), rounds__min_replies=2)
    assert [heard for _, heard, _ in half.asked] == [[0, 1, 2]]
    why = "rounds.min-replies = 2 replies must be usable, got 1"
    assert [e.kept for e in kept.of(RoundEnd)] == [why, ""]
    assert [r["kept"] for r in checkpoint.load(tmp_path).results["rounds"]] == [why, ""]


def test_a_run_none_of_whose_rounds_used_a_reply_has_failed_and_can_go_on(tmp_path):
    said = {"rounds__min_replies": 2, "tamper": lost(1, 2)}
    first = Kept(tmp_path / "a", Half(), fails="no round of 2 .* got 1; see", **said)
    again = {"after": first.keeper, "num_server_rounds": 2}
    Kept(tmp_path / "b", Half(), fails="no round of 2", **again)
    grown = Kept(tmp_path / "c", Half(), **again | said | {"num_server_rounds": 3})
    assert [e.kept for e in grown.of(RoundEnd)] == [""]


def test_a_message_lives_as_long_as_its_round_waits(tmp_path):
    kept = Kept(tmp_path, Half(), rounds__timeout_s=7.5, rounds__federated_evaluation=True)
    lives = {(m.metadata.message_type, m.metadata.ttl) for m in kept.grid.asked}
    assert lives >= {("train", 7.5), ("evaluate", 7.5)}
    assert {ttl for kind, ttl in lives if kind in ("train", "evaluate")} == {7.5}


def test_what_a_reply_claims_beyond_its_limit_does_not_count_and_is_told(tmp_path):
    heard = []

    class Noting(Half):
        def __call__(self, state, updates, population):
            heard.append([u.num_examples for u in updates])
            return super().__call__(state, updates, population)

    def tamper(message, reply, partition_id):
        if trained(message) and partition_id == 1:
            reply.content["metrics"]["num-examples"] = 10**9
            sent, arrays = message.content["arrays"], reply.content["arrays"]
            for name in list(arrays):
                start = sent[name].numpy()
                arrays[name] = Array(start + 100 * (arrays[name].numpy() - start))
        return reply

    kept = Kept(tmp_path, Noting(), tamper=tamper, num_server_rounds=1)
    cuts = kept.of(ClientClipped)
    assert [(e.partition_id, e.what) for e in cuts] == [(1, "examples"), (1, "movement")]
    honest = sorted([heard[0][0], heard[0][2]])
    assert heard[0][1] == int(cuts[0].counted) == 10 * honest[1]
    assert cuts[1].claimed > 10 * cuts[1].counted


def test_a_claimed_count_does_not_take_over_the_clients_scores(tmp_path):
    def tamper(message, reply, partition_id):
        if message.metadata.message_type == "evaluate":
            metrics = reply.content["metrics"]
            metrics["accuracy"] = 1.0 if partition_id == 1 else 0.5
            metrics["num-examples"] = 10**9 if partition_id == 1 else 10
        return reply

    said = {"num_server_rounds": 1, "rounds__federated_evaluation": True}
    kept = Kept(tmp_path, Half(), tamper=tamper, **said)
    assert kept.of(RoundEnd)[0].federated["examples"] == 10 + 100 + 10
