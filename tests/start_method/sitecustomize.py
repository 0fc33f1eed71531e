"""Make a Python process start its workers as ``pytest --start-method`` says. conftest.py puts this on PYTHONPATH."""

import multiprocessing
import os

multiprocessing.set_start_method(os.environ["SAFMN_TEST_START_METHOD"])
