"""The pytest plugin behind ``lowbit conform``: opt-in, by ``-p lowbit.conformance.plugin``, never an entry point.

It gives every test its :class:`~lowbit.conformance.kit.Kit`, turns expected failures of the list into xfails
(strictly: one that passes fails the run), and writes the report at the end. What became of a check travels with
pytest's own report of it, so that the processes of pytest-xdist add up to one record. Installing lowbit changes nothing
in anybody's pytest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

import lowbit

from . import report
from .clauses import CLAUSES, Check, ClauseError, select
from .kit import PROFILES, Kit, Outcome
from .options import parse_options
from .report import Result

__all__ = ["Session"]

_KEY = pytest.StashKey["Session"]()
_PROPERTY = "lowbit"  # of a test's report


class Session:
    """State of one conformance run inside a pytest session."""

    def __init__(self, config: pytest.Config) -> None:
        def option(name: str) -> Any:
            return config.getoption(name)

        self.results: list[Result] = []
        self.last: Result | None = None  # of this process
        self.worker = hasattr(config, "workerinput")  # of pytest-xdist: the results are somebody else's to report
        self.quiet = bool(option("lowbit_quiet"))
        self.paths = {form: option(f"lowbit_{form}") for form in ("json", "markdown", "html")}
        try:
            self.clauses = select(option("lowbit_clause"))
            xfails = option("lowbit_xfails")
            self.xfails = report.read_xfails(Path(xfails)) if xfails else {}
            options = parse_options(option("lowbit_option"))
            self.backend: Any = lowbit.load(option("lowbit_backend"), **options)
        except (ClauseError, OSError, ValueError, lowbit.BackendError) as error:
            raise pytest.UsageError(str(error)) from error
        self.profile = str(option("lowbit_profile"))
        self.seed: int | None = option("lowbit_seed")
        self.broken = False  # something failed that is not a check: a fixture, a collection, somebody else's test
        self.home = tempfile.TemporaryDirectory(prefix="lowbit-conform-")
        set_hypothesis_home_dir(self.home.name)  # nothing is written beside the suite or into the working folder

    def sink(self, outcome: Outcome) -> None:
        """Take the outcome of one check."""
        check = outcome.check
        self.last = Result(check.clause.id, check.name, outcome.status, outcome.margin, outcome.note)

    def finished(self) -> report.Run:
        """Everything seen so far as a record."""
        return report.Run(
            spec=lowbit.SPEC_VERSION,
            suite=lowbit.__version__,
            backend=str(self.backend.name),
            device=str(self.backend.device),
            profile=self.profile,
            clauses=report.combine(sorted(self.results, key=lambda r: r.check), self.clauses, self.xfails),
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what became of a test, of this process or of another one."""
        found = [value for name, value in report.user_properties if name == _PROPERTY]
        if report.when == "call":
            self.results += [Result(**value) for value in found]  # type: ignore[arg-type]
        if report.failed and (report.when != "call" or not found):
            self.broken = True


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, all prefixed with --lowbit."""
    group = parser.getgroup("lowbit", "conformance of a lowbit backend")
    group.addoption("--lowbit-backend", dest="lowbit_backend", metavar="NAME", help="entry-point name or module:attr")
    group.addoption(
        "--lowbit-option", dest="lowbit_option", metavar="K=V", action="append", default=[], help="for the backend"
    )
    group.addoption("--lowbit-profile", dest="lowbit_profile", choices=list(PROFILES), default="quick")
    group.addoption("--lowbit-seed", dest="lowbit_seed", metavar="N", type=int, help="draw other examples")
    group.addoption("--lowbit-clause", dest="lowbit_clause", metavar="ID", action="append", default=[])
    group.addoption("--lowbit-xfails", dest="lowbit_xfails", metavar="FILE", help="lines 'Q-3  # reason'")
    for form in ("json", "markdown", "html"):
        group.addoption(f"--lowbit-{form}", dest=f"lowbit_{form}", metavar="FILE", help=f"write a {form} report")
    group.addoption("--lowbit-quiet", dest="lowbit_quiet", action="store_true", help="no table at the end")


def pytest_configure(config: pytest.Config) -> None:
    """Load the backend before anything is collected, so that a wrong name is one line."""
    if config.getoption("lowbit_backend"):
        config.stash[_KEY] = Session(config)
        config.pluginmanager.register(config.stash[_KEY])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    session = config.stash.get(_KEY, None)
    if session is not None:
        set_hypothesis_home_dir(None)
        session.home.cleanup()


def _check_of(item: pytest.Item) -> Check | None:
    return getattr(getattr(item, "function", None), "__lowbit_check__", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the clauses that were asked for."""
    session = config.stash.get(_KEY, None)
    if session is None:
        return
    wanted = set(session.clauses)
    kept = [i for i in items if (check := _check_of(i)) is None or check.clause.id in wanted]
    config.hook.pytest_deselected(items=[i for i in items if i not in kept])
    items[:] = kept


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Kit:
    """The backend under test, as a :class:`Kit`."""
    session = request.config.stash.get(_KEY, None)
    if session is None:
        raise pytest.UsageError("the conformance suite needs --lowbit-backend NAME")
    return Kit(session.backend, examples=PROFILES[session.profile], seed=session.seed, sink=session.sink)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Hand what became of a check to its report, and show one that could not run as a skip, with the reason."""
    session = pyfuncitem.config.stash.get(_KEY, None)
    if session is None or _check_of(pyfuncitem) is None:
        return (yield)
    session.last = None
    try:
        result = yield
    finally:
        if session.last is not None:
            pyfuncitem.user_properties.append((_PROPERTY, asdict(session.last)))
    if session.last is not None and session.last.status in ("unsupported", "not implemented"):
        pytest.skip(f"{session.last.status}: {session.last.note}")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure of a clause on the list is expected."""
    outcome = yield
    session, check = item.config.stash.get(_KEY, None), _check_of(item)
    if session is None or not outcome.failed:
        return outcome
    if check is not None and call.when == "call" and check.clause.id in session.xfails:
        outcome.outcome = "skipped"
        outcome.wasxfail = session.xfails[check.clause.id]
    return outcome


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the reports; the exit status says whether a clause failed."""
    state = session.config.stash.get(_KEY, None)
    if state is None or state.worker or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    run = state.finished()
    paths = {f"{form}_path": Path(path) if path else None for form, path in state.paths.items()}
    report.write(run, **paths)
    session.exitstatus = pytest.ExitCode.OK if run.ok and not state.broken else pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """The table of clauses."""
    state = config.stash.get(_KEY, None)
    if state is None or state.quiet or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    terminalreporter.section("conformance")
    terminalreporter.write_line(report.to_text(state.finished()))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Which backend, and how many clauses."""
    state = config.stash.get(_KEY, None)
    if state is None:
        return None
    backend, share = state.backend, f"{len(state.clauses)} of {len(CLAUSES)} clauses"
    return f"lowbit: backend {backend.name} on {backend.device}, {share}"
