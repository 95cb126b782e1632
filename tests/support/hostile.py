"""For the tests of files that somebody else made: what may come of reading them, and how they are damaged."""

import time
import tracemalloc
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from raysim.errors import ConfigError

checked = settings(
    max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@contextmanager
def told(*names):
    """What happens inside succeeds, or raises a ``ConfigError`` with one of the names; and soon."""
    start = time.monotonic()
    try:
        yield
    except ConfigError as error:
        assert any(str(name) in problem for problem in error.problems for name in names), error  # noqa: PT017
        assert len(str(error)) < 50_000  # noqa: PT017
    assert time.monotonic() - start < 20


@st.composite
def damaged(draw, contents):
    """One of the contents, cut short, or with bytes flipped, repeated, taken out or put in."""
    data = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "flip", "flip", "repeat", "remove", "insert"])):
            case "cut":
                del data[at:]
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


@contextmanager
def little_memory():
    """What happens inside takes less than 8 MB, and little time."""
    start = time.monotonic()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 20
