"""What clients have spent of their privacy, on the disk before they are asked for more.

A client that was asked may have answered, whatever became of the round: a run that stops within one
and goes on asks again, and both count. So the ledger is a file of its own, written before the
messages go out, and not a part of the checkpoint, which a round leaves only when it is over. While
a disk refuses it, nobody is asked.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.accounting import Account, epsilon_of, need_accountant
from feddgm_flwr.events import PrivacySpent
from feddgm_flwr.federation.saving import insist
from feddgm_flwr.files import write_atomically

FILE = "privacy.json"


class Ledger:
    """Each client's account, by partition id.

    Raises
    ------
    ValueError
        The accountant is not installed, the file of a resumed run is missing or damaged, or the
        folder of a new one holds a file of another's.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        need_accountant()
        self._privacy, self._client = config.privacy, config.client
        self._path = folder / FILE
        if self._path.exists() and not config.resume:
            raise ValueError(
                "out-dir must be a new folder under privacy.noise-multiplier, got "
                f"{str(folder)!r}, whose {FILE} says what clients have spent in a run that saved "
                "no round; name another folder, and count that run beside"
            )
        self.accounts: dict[int, Account] = read(self._path) if config.resume else {}

    def asked(self, clients: Sequence[int]) -> None:
        """Note who is about to be asked to train.

        Raises
        ------
        UnsavedError
            The disk has refused it for half an hour; so does ``heard``.
        """
        self.accounts |= {c: self.accounts.get(c, Account()).asked() for c in clients}
        self._write()

    def heard(self, num_examples: Iterable[tuple[int, int]]) -> None:
        """Note on how many images clients say that they have trained, in as many replies."""
        for client, images in num_examples:
            self.accounts[client] = self.accounts[client].heard(images)
        self._write()

    def spent(self, server_round: int) -> PrivacySpent:
        """Return each client's epsilon so far, where it has said how many images it has.

        The largest is that of those who have; where nobody has, there is none.
        """
        known = {c: a for c, a in sorted(self.accounts.items()) if a.fewest}
        each = {str(c): epsilon_of(a, self._privacy, self._client) for c, a in known.items()}
        return PrivacySpent(
            round=server_round,
            epsilon=max(each.values(), default=None),
            delta=self._privacy.delta,
            clients=each,
            unknown=len(self.accounts) - len(known),
        )

    def too_large_delta(self) -> int:
        """Return the fewest images of a client where delta is too large for them, else 0."""
        fewest = min((a.fewest for a in self.accounts.values() if a.fewest), default=0)
        return fewest if self._privacy.delta * fewest >= 1 else 0

    def _write(self) -> None:
        plain = {str(c): asdict(a) for c, a in sorted(self.accounts.items())}
        data = json.dumps(plain, indent=1).encode()
        insist(partial(write_atomically, self._path, data), FILE, self._path.parent)


def read(path: Path) -> dict[int, Account]:
    """Return the accounts of a run that goes on.

    Raises
    ------
    ValueError
        They are missing or damaged.
    """
    try:
        plain = json.loads(path.read_text())
        return {int(c): Account(**a) for c, a in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"resume = true under privacy.noise-multiplier needs {FILE} in out-dir, which says "
            f"what clients have spent, got {type(error).__name__} of {str(path)!r}; restore it "
            "from a copy, or start a new run in another out-dir"
        ) from error
