"""The learner's hyperparameters, each with its reason. This module needs no torch."""

from pydantic import BaseModel, Field


class LearningSettings(BaseModel):
    """Hyperparameters of decoupled PPO over prioritised replay; named as in cleanrl where cleanrl has the same one."""

    # When to learn.
    fresh_batch: int = Field(16, ge=1, description="Fresh experiences that trigger an update")
    minimum_batch: int = Field(8, ge=1, description="Fewest experiences of an update, replayed ones included")

    warm_up: int = Field(
        16,
        ge=0,
        description="First updates in which only value and reward heads of a policy from the laboratory learn: until "
        "its value head knows the rewards of this installation, advantages are that head's errors, and undo the policy",
    )

    # What an update sees.
    batch_size: int = Field(128, ge=1, description="Experiences of an update: the fresh ones, filled up from replay")
    minibatch_size: int = Field(16, ge=1, description="Experiences of one gradient step")
    update_epochs: int = Field(4, ge=1, description="Passes over the batch")

    # Loss: policy + vf_coef value - ent_coef entropy + safety + reward_coef reward heads.
    clip_coef: float = Field(
        0.2, gt=0, lt=1, description="Clip range of the ratio policy / proximal policy; Schulman et al. (2017)"
    )
    max_importance: float = Field(
        2.0, ge=1, description="Largest weight proximal / behaviour of an experience, which bounds the variance"
    )
    gamma: float = Field(
        1.0, ge=0, le=1, description="Discount of a run's later rewards: 1, because they add up; 0 learns as a bandit"
    )
    gae_lambda: float = Field(
        0.95,
        ge=0,
        le=1,
        description="1: credit by the later rewards as they came; 0: by the next decision's value. Schulman et al. "
        "(2016)",
    )
    vf_coef: float = Field(0.5, ge=0, description="Of the value loss")
    ent_coef: float = Field(0.01, ge=0, description="Of the entropy, which is maximised")
    reward_coef: float = Field(1.0, ge=0, description="Of the reward heads")
    safety_coef: float = Field(0.1, ge=0, description="Of each part of the safety term")
    safe_uncertainty: float = Field(
        0.1, ge=0, description="Half-width of a reward below which the safety term penalises certainty"
    )
    safe_entropy: float = Field(0.5, ge=0, description="Entropy, nats, below which the safety term penalises certainty")
    minimum_scale: float = Field(
        0.05,
        gt=0,
        description="Advantages with a smaller spread are not scaled up to unit spread: that amplifies noise",
    )

    # Steps.
    learning_rate: float = Field(3e-4, gt=0, description="Of AdamW, at the start of the cosine")
    minimum_learning_rate: float = Field(
        3e-5, ge=0, description="At the end of the cosine and after it: a learner that runs for weeks must not freeze"
    )
    weight_decay: float = Field(1e-4, ge=0, description="Of AdamW")
    t_max: int = Field(10_000, ge=1, description="Updates of the cosine's decay")
    max_grad_norm: float = Field(0.5, gt=0, description="Gradients with a larger L2 norm are scaled down to it")
    ewma_decay: float = Field(
        0.889,
        ge=0,
        lt=1,
        description="Of the proximal policy per gradient step; Hilton et al. (2022): a mean age of 9 steps",
    )

    # When an update stops, or is rolled back.
    target_kl: float = Field(0.05, gt=0, description="KL(before || now), nats, above which an update stops early")
    max_kl: float = Field(0.3, gt=0, description="KL, nats, above which an update is rolled back")
    max_loss: float = Field(
        50.0, gt=0, description="A minibatch with a larger loss, or one that is not finite, is skipped"
    )
    entropy_floor: float = Field(
        0.1, ge=0, description="An update that lowers the mean entropy, nats, below it is rolled back"
    )
    shortenings: int = Field(
        3,
        ge=0,
        le=20,
        description="Times that an update which moves the policy too far is shortened to a quarter before it is rolled "
        "back; a line search as in Schulman et al. (2015)",
    )

    # Replay.
    replay_capacity: int = Field(100_000, ge=1, description="Experiences kept, about 5 kB each for 10 layers")
    replay_exponent: float = Field(
        0.6, ge=0, le=1, description="Exponent of |advantage| in the priority; Schaul et al. (2016)"
    )
    replay_correction: float = Field(0.4, ge=0, le=1, description="Exponent of the importance correction; same source")
    max_age: int = Field(
        64, ge=0, description="Policy versions after which an experience is dropped: about 1,000 fresh experiences"
    )

    seed: int = Field(0, ge=0, description="Of the first policy's weights and of sampling from replay")
