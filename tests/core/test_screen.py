"""What is said can be read, in a terminal and in a file, and is said once."""

from __future__ import annotations

import logging

import pytest

from penchant.core.findings import note
from penchant.core.screen import setup_logging

LONG = note("ties", "word " * 60 + "[bold]end[/bold]", "nothing to do")


def test_a_finding_is_one_whole_line_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging()
    logging.getLogger("penchant").warning("%s", LONG)
    assert capsys.readouterr().err.splitlines() == [f"WARNING  {LONG}"]


def test_a_finding_is_said_once_per_command_and_other_messages_each_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("penchant")
    for _ in range(2):  # two commands in one process
        setup_logging()
        for point in range(2):
            logger.info("point %d", point)
            logger.info("%s", LONG)
            logger.info("the same")
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(maxsplit=1)[1] for line in lines] == [
            "point 0", str(LONG), "the same", "point 1", "the same"
        ]  # fmt: skip
