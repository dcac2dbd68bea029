"""python -m flashrt_ros.cli"""

import sys

from flashrt_ros.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
