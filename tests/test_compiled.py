"""What is compiled, and how often."""

import numpy as np

from edgewise.compiled import inner, lean
from edgewise.fleet.layout import Array


@inner
def stepped(start: int, by: int, back: bool) -> int:
    return start - by if back else start + by


@lean
def walked(steps: Array, start: int) -> int:
    """Calls it with a constant, a narrow and a wide integer, and both kinds of truth value."""
    start = stepped(start, 1, False)
    start = stepped(start, steps[0], start > 10)
    return stepped(steps[1], start, True)


def test_integers_of_all_kinds_are_compiled_for_once() -> None:
    assert walked(np.array([5, 100], np.int32), 3) == 100 - (3 + 1 + 5)
    assert len(stepped.signatures) == 1  # type: ignore[attr-defined]
