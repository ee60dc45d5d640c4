"""What people see in the terminal: names of strangers as they are."""

from __future__ import annotations

import pytest
from test_prediction import predictions

from clipstem import console

ODD = "[/bold] [red]{0} :smile: {task}"


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    found = predictions([2, 3])
    found.columns["subject"] = [ODD, ODD]
    with console.progress_bar(ODD, 1) as progress:
        progress(1)
    console.show_predictions(ODD, found)
    shown = capsys.readouterr().out
    assert shown.count(ODD) == 3
