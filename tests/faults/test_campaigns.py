"""Every row of the table of faults, a little of it; ``tools/torture --long`` does all."""

import pytest

from tests.faults import table
from tests.faults.table import CAMPAIGNS


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_promise_is_kept_under_a_little_torture(name: str) -> None:
    figures = table.run(name, CAMPAIGNS[name].short, seed=0).figures
    if figures.skipped:
        pytest.skip(figures.skipped)
    assert figures, f"{figures}\n" + "\n".join(figures.misses)
