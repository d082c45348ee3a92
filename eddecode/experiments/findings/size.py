"""How much the experiments train and measure: the full size, and a quick one."""

from __future__ import annotations

from dataclasses import dataclass, field

from eddecode.experiments import corpus
from eddecode.experiments.training import PRETRAINING, FitConfig, ModelShape

DISTILLATION = FitConfig(steps=1500, lr=3e-3)
SMALL = ModelShape(hidden=64, layers=2, heads=2, feed_forward=168)
MIDDLE = ModelShape(hidden=96, layers=2, heads=4, feed_forward=256)
LARGE = ModelShape(hidden=192, layers=4, heads=6, feed_forward=512)


@dataclass(frozen=True)
class ExperimentSize:
    """Sizes of models, lengths of training, and what is measured.

    Attributes:
        shape: shape of the models of most experiments.
        shapes: shapes of the models that are compared in size, smallest first. The pair of the first shape is
            transferred to the base of the last shape.
        pretraining: training of every base model.
        distillation: training of the model that is distilled from scratch.
        requests: held-out requests per condition.
        alphas: α's at which every pair is measured.
        large_alphas: further α's for the curve of the main pair.
        filter_steps: lengths of filtered fine-tuning, weak to extreme.
        cdpo_betas: β's of cDPO, weak to strong.
        tilt_betas: β's of the exact tilts, weak to strong.
        ensemble_members: aligned models in an ensemble.
        independent_base_steps: lengths of pre-training of independent bases that take the place of a withheld base;
            one that is trained as long as the base is always measured too.
        attempts: completions per request where several attempts at a request are compared.
        access_top_k: numbers of log-probabilities that an interface discloses.
    """

    shape: ModelShape = field(default_factory=ModelShape)
    shapes: tuple[ModelShape, ...] = (SMALL, ModelShape(), LARGE)
    pretraining: FitConfig = PRETRAINING
    distillation: FitConfig = DISTILLATION
    requests: int = corpus.HELD_OUT
    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45, 0.6, 1.0, 2.0)
    large_alphas: tuple[float, ...] = (3.0, 5.0)
    filter_steps: tuple[int, ...] = (20, 80, 320, 640, 1600)
    cdpo_betas: tuple[float, ...] = (2.0, 0.5, 0.2, 0.1, 0.03)
    tilt_betas: tuple[float, ...] = (2.0, 1.0, 0.5, 0.3)
    ensemble_members: int = 3
    independent_base_steps: tuple[int, ...] = (300, 600, 1200)
    attempts: int = 8
    access_top_k: tuple[int, ...] = (1, 5, 20)

    @classmethod
    def quick(cls) -> ExperimentSize:
        """Fewer steps, requests and α's, three strengths."""
        return cls(
            pretraining=FitConfig(steps=1200, lr=3e-3),
            distillation=FitConfig(steps=600, lr=3e-3),
            shapes=(SMALL, MIDDLE, ModelShape()),
            requests=200,
            alphas=(0.1, 0.3, 0.6, 1.0, 2.0),
            large_alphas=(5.0,),
            filter_steps=(20, 160, 640),
            cdpo_betas=(1.0, 0.2, 0.05),
            tilt_betas=(1.0, 0.3),
            independent_base_steps=(600,),
            attempts=4,
            access_top_k=(1, 5),
        )
