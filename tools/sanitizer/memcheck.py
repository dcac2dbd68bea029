"""GPU tests under compute-sanitizer's memcheck.

usage: python tools/sanitizer/memcheck.py [pytest arguments]

It fails where a kernel reads or writes what is not its own. cuda-bindings asks the driver for functions that
it may not have; that is no error of ours, so errors that calls return are not reported (tests look at them).
"""

from __future__ import annotations

import subprocess
import sys

from watched import ENVIRONMENT, pytest_under

MEMCHECK = ['compute-sanitizer', '--report-api-errors', 'no', '--error-exitcode', '9', '--print-limit', '5']

if __name__ == '__main__':
    sys.exit(subprocess.run(pytest_under(MEMCHECK, sys.argv[1:]), env=ENVIRONMENT).returncode)
