"""A timeline made by hand, for the tests of what is done with timelines. No tests here."""

from outboard.breakdown import Span

MS = 1e-3


def ms(lane, begin, end, name="w", moved=0):
    return Span(lane, name, begin * MS, end * MS, moved)


# Two steps of 100 ms. In the first the device stands still for 20 ms, in the second for 10.
TWO_STEPS = [
    ms("steps", 0, 100, "step 1"),
    ms("compute", 0, 30, "forward"),
    ms("compute", 30, 80, "backward"),
    ms("gradients down", 40, 90, moved=2_500_000_000),
    ms("compute", 80, 100, "step"),
    ms("exposed", 80, 100),
    ms("host update", 84, 98),
    ms("waits", 80, 90),
    ms("steps", 100, 200, "step 2"),
    ms("compute", 100, 130, "forward"),
    ms("compute", 130, 190, "backward"),
    ms("weights up", 195, 200, moved=250_000_000),
    ms("compute", 190, 200, "step"),
    ms("exposed", 190, 200),
]
