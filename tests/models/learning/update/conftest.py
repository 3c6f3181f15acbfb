import pytest

from tamiyo.models.learning.update import Updater
from tests.models.learning.update.updates import settings, update
from tests.support.experiences import small_policy


@pytest.fixture
def updater():
    """After one accepted update, so that the optimiser has moments and the average differs from the policy."""
    made = Updater(small_policy(), settings())
    update(made)
    return made
