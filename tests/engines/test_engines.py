import cells
import pytest
from conftest import launch, log_of

@pytest.mark.parametrize("case", cells.CASES, ids=lambda c: c.name)
def test_same(case, world):
    two = world.folder_of(case)
    one = world.folder_of(case, "one")
    print(log_of(one), log_of(two))
