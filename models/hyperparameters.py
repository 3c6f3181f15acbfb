"""What the learner can be told: every number of the algorithm with its reason. No torch here."""

from pydantic import BaseModel, Field


class LearningSettings(BaseModel):
    """Decoupled PPO over prioritised replay; names as in cleanrl where cleanrl has one."""

    # When to learn.
    fresh_batch: int = Field(16, ge=1, description="Fresh experiences that set off an update")
    minimum_batch: int = Field(8, ge=1, description="Fewer experiences, replayed ones included, are no update")

    # What an update sees.
    batch_size: int = Field(128, ge=1, description="Experiences of an update: the fresh ones, filled up from replay")
    minibatch_size: int = Field(16, ge=1, description="Experiences of one gradient step")
    update_epochs: int = Field(4, ge=1, description="Passes over the batch")

    # Loss: policy + vf_coef value - ent_coef entropy + safety + reward_coef reward heads.
    clip_coef: float = Field(0.2, gt=0, lt=1, description="Of the ratio policy / proximal policy")
    max_importance: float = Field(
        2.0, ge=1, description="Of proximal / behaviour: no experience speaks for more than two, so variance is bounded"
    )
    vf_coef: float = Field(0.5, ge=0, description="Of the value loss; the specification's")
    ent_coef: float = Field(0.01, ge=0, description="Of the entropy bonus; the specification's")
    reward_coef: float = Field(1.0, ge=0, description="Of the reward heads")
    safety_coef: float = Field(0.1, ge=0, description="Of each part of the safety term")
    safe_uncertainty: float = Field(0.1, ge=0, description="The safety term wants the half-width of a reward above it")
    safe_entropy: float = Field(0.5, ge=0, description="The safety term wants the entropy above it, nats")
    minimum_scale: float = Field(
        0.05, gt=0, description="Advantages that spread less are not blown up to unit scale: that would learn noise"
    )

    # Steps.
    learning_rate: float = Field(3e-4, gt=0, description="Of AdamW at the start; the specification's")
    minimum_learning_rate: float = Field(
        3e-5, ge=0, description="Where the cosine ends and stays: a learner that runs for weeks must not freeze"
    )
    weight_decay: float = Field(1e-4, ge=0, description="Of AdamW; the specification's")
    t_max: int = Field(10_000, ge=1, description="Updates of the cosine's decay")
    max_grad_norm: float = Field(0.5, gt=0, description="Gradients are clipped at this norm; the specification's")
    ewma_decay: float = Field(
        0.889,
        ge=0,
        lt=1,
        description="Of the proximal policy, a gradient step; Hilton et al. (2022): an age of 9 steps",
    )

    # What makes an update stop, or be taken back.
    target_kl: float = Field(0.05, gt=0, description="KL(before || now), nats, at which an update stops early")
    max_kl: float = Field(0.3, gt=0, description="KL, nats, at which an update is taken back")
    max_loss: float = Field(50.0, gt=0, description="A minibatch whose loss exceeds it, or is not finite, is skipped")
    entropy_floor: float = Field(
        0.1, ge=0, description="An update that lowers the mean entropy below it is taken back, nats"
    )

    # Replay.
    replay_capacity: int = Field(100_000, ge=1, description="Experiences, some 5 kB each for 10 layers")
    replay_exponent: float = Field(0.6, ge=0, le=1, description="Of |advantage| in the priority; Schaul et al. (2016)")
    replay_correction: float = Field(0.4, ge=0, le=1, description="Exponent of the importance correction; same source")
    max_age: int = Field(
        64, ge=0, description="Policy versions after which an experience leaves: 1,000 fresh experiences ago"
    )

    seed: int = Field(0, ge=0, description="Of the first policy's weights, and of sampling from replay")
