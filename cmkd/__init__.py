"""CMKD: cross-modal conditional teacher-student training for speech emotion recognition (arXiv 2112.00158).

The public names below are imported when they are first used, so that `import cmkd` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmkd.corpora import load_corpus as load_corpus
    from cmkd.features.audio import read_audio as read_audio
    from cmkd.hub.push import push_corpus as push_corpus
    from cmkd.losses import ccc_loss as ccc_loss
    from cmkd.losses import concordance_cc as concordance_cc
    from cmkd.losses import embedding_distance as embedding_distance
    from cmkd.losses import info_nce as info_nce
    from cmkd.losses import prediction_distance as prediction_distance
    from cmkd.losses import weighted_mean as weighted_mean
    from cmkd.quality import dimension_weights as dimension_weights
    from cmkd.quality import fit_residuals as fit_residuals
    from cmkd.quality import quality_weights as quality_weights
    from cmkd.quality import residual_std as residual_std
    from cmkd.scoring.confidence import paired_test as paired_test
    from cmkd.scoring.evaluation import evaluate_predictions as evaluate_predictions
    from cmkd.training.arguments import CMKDTrainingArguments as CMKDTrainingArguments
    from cmkd.training.trainer import CMKDTrainer as CMKDTrainer
    from configuration_cmkd import CMKDStudentConfig as CMKDStudentConfig
    from configuration_cmkd import CMKDTeacherConfig as CMKDTeacherConfig
    from modeling_cmkd import CMKDStudentModel as CMKDStudentModel
    from modeling_cmkd import CMKDTeacherModel as CMKDTeacherModel
    from pipeline_cmkd import SpeechEmotionPipeline as SpeechEmotionPipeline

__version__ = "0.1.0"  # the only place that says it: pyproject.toml takes it from here

_MODULES = {
    "CMKDStudentModel": "modeling_cmkd",
    "CMKDTeacherModel": "modeling_cmkd",
    "CMKDStudentConfig": "configuration_cmkd",
    "CMKDTeacherConfig": "configuration_cmkd",
    "SpeechEmotionPipeline": "pipeline_cmkd",
    "read_audio": "cmkd.features.audio",
    "paired_test": "cmkd.scoring.confidence",
    "load_corpus": "cmkd.corpora",
    "push_corpus": "cmkd.hub.push",
    "evaluate_predictions": "cmkd.scoring.evaluation",
    "ccc_loss": "cmkd.losses",
    "concordance_cc": "cmkd.losses",
    "embedding_distance": "cmkd.losses",
    "info_nce": "cmkd.losses",
    "prediction_distance": "cmkd.losses",
    "weighted_mean": "cmkd.losses",
    "dimension_weights": "cmkd.quality",
    "fit_residuals": "cmkd.quality",
    "quality_weights": "cmkd.quality",
    "residual_std": "cmkd.quality",
    "CMKDTrainer": "cmkd.training.trainer",
    "CMKDTrainingArguments": "cmkd.training.arguments",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'cmkd' has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
