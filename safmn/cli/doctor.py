"""Check this machine and, with -opt, a whole run before it starts. --fix installs what training needs.

With an option file, every image is read, a few steps are trained, the first images are validated, and the run is saved
and resumed, all in a temporary folder. The exit status is 0 if nothing will fail, 1 if something will, 2 for a mistake
in the command.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from safmn.doctor.findings import State, as_json, lists
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
    parser.add_argument("-opt", metavar="FILE", help="option file, or the name of one that `safmn options` lists")
    parser.add_argument("--force_yml", nargs="+", default=(), metavar="A:B=C", help="replace values of the option file")
    parser.add_argument("--tolerant", action="store_true", help="warn about unknown keys instead of refusing the file")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    arguments = parser.parse_args(argv)
    if arguments.fix:
        try:
            fix(say)
        except InstallError as error:
            complain(f"safmn doctor: error: {error}")
            return EXIT_FAILED
        say()
        # in a new process, because this one imported safmn without BasicSR
        again = [word for word in (sys.argv[2:] if argv is None else argv) if word != "--fix"]
        return subprocess.run([sys.executable, "-m", "safmn", "doctor", *again]).returncode
    findings = examine()
    if arguments.opt is not None and not any(finding.state is State.FAILS for finding in findings):
        from safmn.doctor.option_file import examine_file  # imports torch and BasicSR, which may be missing

        overrides = [*arguments.force_yml, *(["tolerant=true"] if arguments.tolerant else [])]
        findings += examine_file(arguments.opt, overrides)
    say(as_json(findings) if arguments.json else lists(findings))
    return EXIT_FAILED if any(finding.state is State.FAILS for finding in findings) else 0
