import pytest

from tamiyo.schemas.adaptation import Action
from tamiyo.streams.stages.action_text import gerund, imperative


@pytest.mark.parametrize(
    ("kind", "order", "subject"),
    [
        ("no_op", "make no adaptation", "Making no adaptation"),
        ("load_kernel", "load low_rank at layer fc1", "Loading low_rank at layer fc1"),
        ("unload_kernel", "unload a kernel at layer fc1", "Unloading a kernel at layer fc1"),
        ("fossilize_kernel", "make a kernel at layer fc1 permanent", "Making a kernel at layer fc1 permanent"),
        ("optimize_parameters", "halve the learning rate of layer fc1", "Halving the learning rate of layer fc1"),
        ("experimental", "apply experimental at layer fc1", "Applying experimental at layer fc1"),
    ],
)
def test_an_action_in_words(kind: str, order: str, subject: str) -> None:
    action = Action(type=kind, layer_id="fc1", blueprint="low_rank")
    assert (imperative(action), gerund(action)) == (order, subject)
