"""`python -m clipstem.bank out=folder`: the drawn bank as parquet files in STEM's schema."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from clipstem.atomic import new_folder
from clipstem.bank.stem import bank_files, bank_splits, write_bank_file
from clipstem.command import verb
from clipstem.config import BankConfig
from clipstem.question import ClipstemError
from clipstem.workers import Workers


def write_bank(config: BankConfig) -> int:
    """Write the bank under `config.out`/data; returns the number of questions.

    Raises:
        ClipstemError: if `out` exists or a skill is unknown.
    """
    splits = bank_splits(config.skills, config.questions_per_skill, config.seed)
    files = bank_files(splits, config.rows_per_file)
    if not files:
        raise ClipstemError(
            "conf key 'questions_per_skill': asks for no question; expected 1 or more"
        )
    with new_folder(Path(config.out)) as folder, Workers(config.workers) as workers:
        (folder / "data").mkdir()
        return sum(workers.map(partial(write_bank_file, folder / "data"), files))


@verb("bank", BankConfig)
def main(config: BankConfig) -> None:
    """Write the bank and say where it is."""
    count = write_bank(config)
    print(
        f"{count:,} questions in {config.out}; next: "
        f"python -m clipstem.prepare source=stem path={config.out} out=…"
    )


if __name__ == "__main__":
    main()
