"""Runs tests marked ``interpreter`` in a second pytest process, where Triton interprets kernels, and reports them here.

Triton chooses between compiler and interpreter when it is imported, and other tests of this process need its compiler.
So the second process collects the same files, waits for the name of a test, runs it, and sends its reports back. They
count, fail and stop the run (-x) as if the test had run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_PIPES = "FFMEF_TESTS_INTERPRETER"  # file descriptors for incoming names and outgoing reports


class Interpreter:
    """The second process, seen from the first."""

    def __init__(self, config: pytest.Config, files: list[str]) -> None:
        self.config = config
        self.log = tempfile.TemporaryFile("w+")
        names, self._names = os.pipe()
        self._reports, reports = os.pipe()
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", _PIPES: f"{names},{reports}"}
        options = ["--exhaustive"] if config.getoption("exhaustive") else []
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *files]
        self.process = subprocess.Popen(
            command, env=environment, cwd=config.rootpath, stdout=self.log, stderr=self.log, pass_fds=(names, reports)
        )
        os.close(names)
        os.close(reports)
        self._writer, self._reader = os.fdopen(self._names, "w"), os.fdopen(self._reports)

    def run(self, item: pytest.Item, next_item: pytest.Item | None) -> list[pytest.TestReport]:
        """Return the reports of one test."""
        following = next_item.nodeid if next_item is not None and is_interpreted(next_item) else None
        try:
            self._writer.write(json.dumps([item.nodeid, following]) + "\n")
            self._writer.flush()
            answer = self._reader.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.log.seek(0)
            text = f"the interpreter's process ended:\n{self.log.read()[-6000:]}"
            return [pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")]
        return [
            self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
            for data in json.loads(answer)
        ]

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
        self.process.wait(60)
        self.log.close()


def is_interpreted(item: pytest.Item) -> bool:
    """Return whether a test has to run in the interpreter's process, and can."""
    skipped = any(mark.args and mark.args[0] is True for mark in item.iter_markers("skipif"))
    return item.get_closest_marker("interpreter") is not None and not skipped


def run_in_the_interpreter(item: pytest.Item, next_item: pytest.Item | None) -> None:
    """Run a test in the second process and log its reports; the first such test starts that process."""
    session = item.session
    if not hasattr(session, "interpreter"):
        files = sorted({str(other.path) for other in session.items if is_interpreted(other)})
        session.interpreter = Interpreter(item.config, files)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in session.interpreter.run(item, next_item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # The previous test kept the fixtures that this item shares with it; the next one may need none of them.
    session._setupstate.teardown_exact(next_item)


def serves() -> bool:
    """Return whether this is the second process."""
    return _PIPES in os.environ


def serve(session: pytest.Session) -> None:
    """In the second process: run tests by name until there are no more names."""
    names, reports = map(int, os.environ[_PIPES].split(","))
    items = {item.nodeid: item for item in session.items}
    config, collected = session.config, []

    class Collector:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            collected.append(config.hook.pytest_report_to_serializable(config=config, report=report))

    config.pluginmanager.register(Collector())
    with os.fdopen(names) as reader, os.fdopen(reports, "w") as writer:
        for line in reader:
            name, following = json.loads(line)
            config.hook.pytest_runtest_protocol(item=items[name], nextitem=items.get(following))
            writer.write(json.dumps(collected) + "\n")
            writer.flush()
            collected.clear()
