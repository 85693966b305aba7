"""A checkout with tiny notebooks."""

import pytest

KNOBS = 'PROFILE = "fast"  # p\nDATASET = "synthetic"  # d\nROOT = ""  # r\nSEED = 0  # s\nVALUE = 0.5  # v'
BODY = """from retailkit import runs
run = runs.start({name!r})
{code}
run.metric("value", VALUE, n=1)
run.finish()"""


@pytest.fixture
def workbook(checkout):
    """A checkout with no notebook yet; `add(name, code)` writes one."""
    return lambda name, code="": checkout(name, KNOBS, BODY.format(name=name, code=code))
