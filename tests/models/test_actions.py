import pytest

from tamiyo.models.actions import blueprint_of, kinds, size, to_action, to_index
from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.errors import PolicyError

KINDS = kinds(["parallel_expansion", "low_rank"])
LAYERS = ["conv1", "conv2", "fc"]


def test_kinds_are_loads_in_order_then_the_rest():
    assert KINDS == (
        "load_kernel:parallel_expansion",
        "load_kernel:low_rank",
        "unload_kernel",
        "fossilize_kernel",
        "optimize_parameters",
    )
    assert [blueprint_of(kind) for kind in KINDS] == ["parallel_expansion", "low_rank", None, None, None]


def test_known_entries():
    assert size(3, KINDS) == 16
    assert to_action(0, LAYERS, KINDS) == Action(type="no_op")
    assert to_action(1, LAYERS, KINDS) == Action(type="load_kernel", layer_id="conv1", blueprint="parallel_expansion")
    assert to_action(7, LAYERS, KINDS) == Action(type="load_kernel", layer_id="conv2", blueprint="low_rank")
    assert to_action(15, LAYERS, KINDS) == Action(type="optimize_parameters", layer_id="fc")


def test_every_entry_comes_back():
    assert [to_index(to_action(index, LAYERS, KINDS), LAYERS, KINDS) for index in range(16)] == list(range(16))


@pytest.mark.parametrize("index", [-1, 16])
def test_an_index_outside_is_refused(index):
    with pytest.raises(PolicyError, match="below 16, the length of the list"):
        to_action(index, LAYERS, KINDS)


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (Action(type="experimental_modification", layer_id="conv1"), "experimental_modification"),
        (Action(type="load_kernel", layer_id="conv1", blueprint="unheard_of"), "unheard_of"),
        (Action(type="load_kernel", layer_id="conv1"), "load_kernel:"),
        (Action(type="unload_kernel", layer_id="conv9"), "conv9"),
        (Action(type="unload_kernel"), "None"),
    ],
)
def test_an_action_that_is_not_in_the_list_is_refused(action, match):
    with pytest.raises(PolicyError, match=match):
        to_index(action, LAYERS, KINDS)
