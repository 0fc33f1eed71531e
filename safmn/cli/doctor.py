"""``safmn doctor``: check this machine and say what will fail; ``--fix`` installs what training needs.

The exit status is 0 if nothing will fail, 1 if something will.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from safmn.doctor.findings import State, lists
from safmn.doctor.machine import examine, fix
from safmn.errors import EXIT_FAILED, exit_status
from safmn.system.basicsr_install import InstallError
from safmn.system.console import ArgumentParser, complain, say


@exit_status
def main(argv: Sequence[str] | None = None) -> int:
    """Check the machine and return the exit status."""
    parser = ArgumentParser(prog="safmn doctor", description=__doc__)
    parser.add_argument(
        "--fix", action="store_true", help="install BasicSR and what else training needs into this environment"
    )
    if parser.parse_args(argv).fix:
        try:
            fix(say)
        except InstallError as error:
            complain(f"safmn doctor: error: {error}")
            return EXIT_FAILED
        say()
        # in a new process, because this one imported safmn without BasicSR
        return subprocess.run([sys.executable, "-m", "safmn", "doctor"]).returncode
    findings = examine()
    say(lists(findings))
    return EXIT_FAILED if any(finding.state is State.FAILS for finding in findings) else 0
