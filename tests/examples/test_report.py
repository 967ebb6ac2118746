"""The report can fail: each kind of broken promise is found in a journal that has it."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.webhooks.events import Event
from examples.webhooks.journal import Attempt, Verdict
from examples.webhooks.report import Report, judge

RUN = "run"
EVENTS = [Event(RUN, "c", "k", number, "", "", "") for number in (1, 2, 3)]


def attempt(
    number: int, work: str, epoch: int, verdict: Verdict = Verdict.TAKEN, session: int = 0xA
) -> Attempt:
    return Attempt(RUN, "k", number, session, epoch, work, verdict)


GOOD = [
    attempt(1, "a.1", 1, Verdict.FAILED),
    attempt(1, "a.2", 2),
    attempt(2, "a.2", 2),
    attempt(2, "b.1", 3),
    attempt(3, "b.1", 3),
]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def judged(journal: Path, *attempts: Attempt) -> Report:
    journal.write_text("".join(one.line() for one in attempts), encoding="utf-8")
    return judge(EVENTS, journal)


def only_problem(report: Report) -> str:
    """The one problem, which is also told to people, who are not told that all is well."""
    (found,) = report.problems
    lines = report.lines()
    assert lines[-1] == f"PROBLEM: {found}"
    assert not any("each key's events arrived in their order" in line for line in lines)
    assert not any("no session was worked on by two" in line for line in lines)
    return found


def test_what_went_well_is_no_problem(journal: Path) -> None:
    report = judged(journal, *GOOD)
    assert not report.problems
    assert (report.events, report.delivered, report.again) == (3, 3, 1)
    assert "3 of 3 events arrived at least once; 1 deliveries were repeated" in report.lines()[0]
    assert "no session was worked on by two at once" in "".join(report.lines())


def test_an_event_that_is_lost(journal: Path) -> None:
    report = judged(journal, *GOOD[:-1], attempt(3, "b.1", 3, Verdict.FAILED))
    assert only_problem(report) == "number 3 of k never arrived"
    assert report.delivered == 2


def test_an_empty_journal(journal: Path) -> None:
    assert len(judged(journal).problems) == 3


def test_events_of_a_key_out_of_order(journal: Path) -> None:
    report = judged(journal, attempt(2, "a.1", 1), attempt(1, "a.1", 1), attempt(3, "a.1", 1))
    assert only_problem(report) == "the events of k arrived as [2, 1, 3]"


@pytest.mark.parametrize("other", ["b.2", "a.3"], ids=["another process", "the same process"])
@pytest.mark.parametrize("verdict", Verdict)
def test_two_operators_of_one_epoch(journal: Path, other: str, verdict: Verdict) -> None:
    """Whatever the receiver did with what the other one tried."""
    report = judged(journal, *GOOD[:3], attempt(2, other, 2, verdict), *GOOD[3:])
    assert only_problem(report) == f"a.2 and {other} worked on session a, epoch 2, at once"


def test_an_older_epoch_after_a_newer_one(journal: Path) -> None:
    report = judged(journal, *GOOD, attempt(3, "a.2", 2))
    assert "taken of an older operator (a.2, epoch 2)" in only_problem(report)


def test_an_older_session_of_the_key_after_a_newer_one(journal: Path) -> None:
    newer = [replace(one, session=0xB) for one in GOOD]
    report = judged(journal, *newer, attempt(3, "c.1", 9))
    assert "taken of an older operator (c.1, epoch 9)" in only_problem(report)


def test_what_the_receiver_refused_is_counted(journal: Path) -> None:
    late, overtaken = attempt(3, "a.2", 2, Verdict.LATE), attempt(3, "a.2", 2, Verdict.OVERTAKEN)
    report = judged(journal, *GOOD, late, late, overtaken)
    assert not report.problems
    assert (report.late, report.overtaken) == (2, 1)
    refused = "refused 3 deliveries of older operators: 2 came after a newer one's, 1 were slow"
    assert refused in report.lines()[1]


def test_events_of_an_earlier_run_do_not_stand_for_those_of_this_one(journal: Path) -> None:
    earlier = [replace(one, run="earlier", epoch=one.epoch - 1) for one in GOOD[3:]]
    report = judged(journal, *earlier, *GOOD)
    assert report.earlier == 2
    assert report.delivered == 3
    lost = judged(journal, *(replace(one, run="earlier") for one in GOOD))
    assert [one for one in lost.problems if "never arrived" in one] == lost.problems
    assert len(lost.problems) == 3


def test_problems_of_a_kind_are_cut_short(journal: Path) -> None:
    journal.touch()
    events = [replace(EVENTS[0], number=number) for number in range(25)]
    problems = judge(events, journal).problems
    assert len(problems) == 11
    assert problems[-1] == "and 15 more of these"


def test_a_line_that_is_being_written_waits(journal: Path) -> None:
    whole = "".join(one.line() for one in GOOD)
    journal.write_text(whole + GOOD[0].line()[:20], encoding="utf-8")
    assert not judge(EVENTS, journal).problems
