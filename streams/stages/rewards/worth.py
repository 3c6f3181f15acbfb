"""What an adaptation is worth, in nats: its gain in the run's objective less its costs. Worths of a run add up.

The gain of the k-th adaptation is what it changes in the run's final objective when none follows. So the gains of a run
sum to what it gained over never adapting: a load earns what is still there at the end, an unload gives back what it
takes, and loading the same kernel again earns nothing new.

The objective is minus the log of the early-stopped held-out loss at equal compute, so a slower step is paid for in the
gain itself. Costs are small and linear, so that they add up too.
"""

ADAPTATION_COST = 0.01
"""Nats, of every executed adaptation: one without effect must lose something."""
PARAMETER_COST = 0.05
"""Nats, of kernels that use the whole parameter budget; an unload gives its share back."""


def cost(parameters_added: int, parameter_budget: int) -> float:
    """Return the cost of an executed adaptation, nats; negative if it frees many parameters.

    Args:
        parameters_added: Change of the network's parameters.
        parameter_budget: Parameters by which the run may grow in all.
    """
    return ADAPTATION_COST + PARAMETER_COST * parameters_added / max(parameter_budget, 1)
