"""Why a test may be skipped on continuous integration; any other reason there is a failure."""

import os
import re
from typing import Any

ALLOWED = [
    r"has no energy",  # a variant of a study that is a denoiser
    r"energies of the paper's 50,000 validation images, is absent",  # not part of the product
    r"the photographs of BSDS500 are not beside the repository",  # likewise
    r"(deepinv|azula) is not installed",  # they take a torchvision for one build of torch
]


def unlisted(reasons: list[str]) -> list[str]:
    """The reasons that nobody listed."""
    return [reason for reason in reasons if not any(re.search(allowed, reason) for allowed in ALLOWED)]


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:  # noqa: ARG001
    """Name what was skipped without a listed reason."""
    skipped = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    if os.environ.get("DUALSCORE_CI") and (found := sorted(set(unlisted(skipped)))):
        terminalreporter.write_line(
            f"skipped for reasons that tests/skips.py does not list: {found}", red=True
        )
        terminalreporter._session.exitstatus = 1
