"""Starts a program that dies with this process's parent, on Linux: ``python -I -S leash.py PARENT-PID PROGRAM …``.

The parent is an agent's host. When that is killed outright nobody is left to stop the program. Run as a file and
with nothing imported that costs time.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main() -> None:
    """This process is the program now."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before this could be asked for
            raise SystemExit(1)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{program[0]} cannot be started: {error.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
