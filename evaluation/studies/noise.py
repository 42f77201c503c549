"""Accuracy over many realisations of Gaussian noise, and over its strength."""

import argparse

from nula.evaluation.monte_carlo import noise_rows
from nula.evaluation.session import Session
from nula.evaluation.studies.study import Study
from nula.runtime.arguments import at_least


def _run(session: Session) -> None:
    session.measure(noise_rows(draws=session.arguments.draws), "noise")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draws", type=at_least(2), default=20, help="realisations at σ = 0.05")


NOISE = Study(
    name="noise",
    summary="accuracy over twenty realisations of Gaussian noise, and over its strength",
    run=_run,
    add_options=_add_options,
    resumable=True,
)
