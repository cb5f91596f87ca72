"""FedDGM with one prior and another, by round, beside what each prior knows by itself.

Claim: docs/priors.md. Of the images that nobody else has, some are public: a bank of an
autoencoder holds them, and the same pictures alone are a row. Others train the judge that tells how
many distilled images are of their class (``server.fidelity-data``). Options and storage are those
of ``compare.py``, whose tuned settings all rows share; the rows stand in
``comparing/generators.py``.

    python benchmarks/compare_priors.py --preset cifar10-small --data PACK.npz --prior TAEF2 \
        --rounds 5 --seeds 0 1 2

How long: benchmarks/README.md. Pictures of the first and the last round: OUT/pictures.
"""

import json
from pathlib import Path

from compare import RESULTS, carry_out, job_of, options
from comparing.generators import Places, rows
from comparing.images import PUBLIC, public, settings_of
from comparing.presets import PRESETS

from feddgm_flwr.priors.pretraining.encode import encode_bank

SCALE = 2
"""A photographic autoencoder's latent is an eighth of the side: of 32 pixels too little."""
BANK, MAKING = "classes.safetensors", "making.json"


def main() -> None:
    """Make the bank where there is none, and run the rows."""
    chosen = options(__doc__, rows(Places(*[Path()] * 4), SCALE))
    if chosen.prior is None:
        raise SystemExit("--prior must name the folder of an autoencoder; add it")
    preset = PRESETS[chosen.preset]
    folder = (chosen.out or RESULTS / chosen.preset) / "data"
    files = public(preset, chosen.data, folder)
    bank = folder / f"{preset.name}-bank"
    if not (bank / BANK).exists():
        _encode(chosen.prior, files.bank, bank, settings_of(preset))
    elif (by := encoder_of(bank)) != chosen.prior.resolve():
        raise SystemExit(
            f"{bank} holds pictures encoded by {by}, and --prior says {chosen.prior}; remove it, "
            "or name another --out"
        )
    at = Places(chosen.prior.resolve(), bank.resolve(), files.bank.resolve(), files.judge.resolve())
    entries = rows(at, SCALE)
    chosen.prior = None  # each row says its own
    carry_out(job_of(chosen, entries, "priors"), chosen)


def encoder_of(bank: Path) -> Path:
    """Return the folder of the autoencoder that made a bank."""
    made = json.loads((bank / MAKING).read_text(encoding="utf-8"))
    return Path(made["autoencoder"]).resolve()


def _encode(autoencoder: Path, pictures: Path, out: Path, said: dict[str, object]) -> None:
    encode_bank(
        (str(autoencoder), ""),
        pictures,
        tuple(str(said["data.class-names"]).split(",")),
        out,
        size=int(str(said["data.image-size"])),
        image_scale=SCALE,
        per_class=PUBLIC,
        seed=0,
        tell=lambda done, total: print(f"\rencoded {done} of {total}", end="", flush=True),
    )
    print()


if __name__ == "__main__":
    main()
