"""python -m flashrt_ros.cli"""

import os
import sys

from flashrt_ros.cli.exit_codes import INTERRUPTED
from flashrt_ros.cli.main import main

if __name__ == '__main__':
    code = main()
    if code == INTERRUPTED:
        # After an interrupt inside exec(), which dataclasses and rosbags use, CPython would end a module that
        # runs with -m by the signal, whatever the exit code says (_Py_UnhandledKeyboardInterrupt, main.c).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
