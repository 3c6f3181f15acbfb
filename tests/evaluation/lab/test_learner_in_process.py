"""Host, stages and learner in one process: each accepted policy decides from then on."""

from tamiyo.evaluation.lab.baselines import Learned
from tamiyo.evaluation.lab.run import Run, RunSpec
from tamiyo.host.blueprints import names
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tests.evaluation.lab.support import Published

SETTINGS = LearningSettings(fresh_batch=4, minimum_batch=4, update_epochs=1)


def small_policy() -> TamiyoPolicy:
    return TamiyoPolicy(PolicyConfig(blueprints=tuple(names()), hidden=8, layers=1)).eval()


def trained() -> tuple[Learner, list[int], str]:
    learner, published = Learner(small_policy(), SETTINGS), Published()
    versions = []
    with Run(RunSpec("digits", seed=1, steps=600), Learned(small_policy()), learner=learner, observer=published) as run:
        while run.advance() is not None:
            versions.append(run.pipeline.policy.version)
            run.decide()
    decided = [each.policy_version for each in published.records["tamiyo.adaptation.decisions"]]
    assert decided == versions
    return learner, versions, published.digest()


def test_a_learner_replaces_the_policy_during_a_run_the_same_way_each_time() -> None:
    learner, versions, digest = trained()
    assert versions[0] == 0
    assert versions == sorted(versions)
    assert 0 < max(versions) <= learner.version
    assert trained()[1:] == (versions, digest)
