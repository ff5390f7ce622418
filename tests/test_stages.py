"""What each stage is, against literals, and that every setting of a recipe has its place."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from cmkd.reporting import report
from cmkd.runs.folder import judge_teacher
from cmkd.runs.recipe import Recipe
from cmkd.scoring.scores import NOTHING_COMPARED, pairs_to_compare
from cmkd.stages import COMPARISONS, EARS, ENCODERS, PAPER_STAGES, STAGES, STUDENTS, SYSTEM_NAMES, followers

ROOT = Path(__file__).parent.parent
COMMON = {
    "corpus",
    "seed",
    "cache_dtype",
    "num_epochs",
    "learning_rate",
    "plateau_factor",
    "plateau_patience",
    "loss_over",
    "group_by_length",
    "summarizer",
    "labelled_share",
    "labelled_seed",
}
MIXED = {"corpus_sampling", "ccc_within"}
TUNED = {
    "student_speech_encoder",
    "use_weighted_layer_sum",
    "num_trainable_layers",
    "encoder_learning_rate_factor",
}
OF_TEACHER = {"teacher_speech_encoder", "text_encoder", "use_weighted_layer_sum"}
DISTILLED = {
    "distillation_weight",
    "embedding_distance",
    "contrastive_temperature",
    "prediction_weight",
    "control",
}
UNLABELLED = {"unlabelled", "unlabelled_rest", "unlabelled_hours", "same_sentences"}
LEXICAL = {"text_encoder", "word_pieces", "lexical_epochs", "lexical_learning_rate", "lexical_temperature"}
JUDGED = {"residual_threshold", "quality", "cross_fitting"}
SETTINGS = {
    "audio": COMMON | MIXED | {"student_speech_encoder", "use_weighted_layer_sum"},
    "text": COMMON | MIXED | {"text_encoder"},
    "teacher": COMMON | MIXED | OF_TEACHER,
    "finetune": COMMON | MIXED | TUNED | {"ears"},
    "lexical": COMMON | TUNED | UNLABELLED | LEXICAL,
    "ts": COMMON | MIXED | TUNED | OF_TEACHER | DISTILLED | UNLABELLED | {"unlabelled_ratio", "word_pieces", "ears"},
    "cts": COMMON | MIXED | TUNED | OF_TEACHER | DISTILLED | UNLABELLED | JUDGED
    | {"unlabelled_ratio", "word_pieces", "ears"},
}  # fmt: skip
WRITTEN_IN_ANOTHER_FORM = {
    "batch_size",  # as utterances_a_step
    "gradient_accumulation_steps",  # as utterances_a_step
    "student_speech_encoder_revision",  # as the commit of the encoder
    "teacher_speech_encoder_revision",
    "text_encoder_revision",
    "ears_revision",
    "teacher_run",  # as teacher_embeddings
    "seeds",  # as the seed of each training
}
WITHOUT_EFFECT_ON_WHAT_IS_LEARNED = {
    "output_dir",
    "stages",
    "overwrite",
    "models_dir",
    "cache_dir",
    "cache_limit_gb",
    "dataloader_workers",
    "kept_student",
    "hub_model_id",
    "hub_private",
}


def test_each_stage_depends_on_the_settings_that_change_what_it_learns():
    assert {name: set(stage.settings) for name, stage in STAGES.items()} == SETTINGS
    assert all(len(stage.settings) == len(set(stage.settings)) for stage in STAGES.values())


def test_every_setting_of_a_recipe_is_of_a_stage_or_changes_nothing():
    of_stages = set().union(*(stage.settings for stage in STAGES.values()))
    places = [of_stages, WRITTEN_IN_ANOTHER_FORM, WITHOUT_EFFECT_ON_WHAT_IS_LEARNED]
    assert set().union(*places) == set(Recipe.model_fields)
    assert sum(map(len, places)) == len(Recipe.model_fields)  # none is in two


def test_stages_run_in_this_order_and_are_called_this():
    assert list(STAGES) == ["audio", "text", "teacher", "finetune", "lexical", "ts", "cts"]
    assert PAPER_STAGES == ("audio", "text", "teacher", "finetune", "ts", "cts")
    assert all(name == stage.name for name, stage in STAGES.items())
    assert SYSTEM_NAMES == {
        "audio": "audio only, frozen",
        "text": "text only, frozen",
        "teacher": "teacher: audio and text",
        "finetune": "audio only, fine-tuned",
        "ts": "T/S student",
        "cts": "cT/S student",
    }
    short_names = ["audio only", "text only", "teacher", "fine-tuned", "lexical", "T/S", "cT/S"]
    assert [stage.short_name for stage in STAGES.values()] == short_names
    assert NOTHING_COMPARED == "Not known: it takes two of fine-tuned, T/S and cT/S."


def test_each_stage_loads_its_encoders():
    assert {name: stage.encoders for name, stage in STAGES.items()} == {
        "audio": ("student_speech_encoder",),
        "text": ("text_encoder",),
        "teacher": ("teacher_speech_encoder", "text_encoder"),
        "finetune": ("student_speech_encoder",),
        "lexical": ("student_speech_encoder", "text_encoder"),
        "ts": ("student_speech_encoder",),
        "cts": ("student_speech_encoder",),
    }
    for name in STAGES:
        taught = ("teacher_speech_encoder", "text_encoder") if name in ("ts", "cts") else ()
        assert STAGES[name].all_encoders == (*STAGES[name].encoders, *taught)
        assert STAGES[name].trains_encoder == (name in ("finetune", "lexical", "ts", "cts"))
        assert STAGES[name].only_hears == (name not in ("text", "teacher"))
        with_ears = (EARS,) if name in ("finetune", "ts", "cts") else ()
        assert STAGES[name].pretrained({"ears": None}) == STAGES[name].encoders
        assert STAGES[name].pretrained({"ears": "user/student"}) == (*STAGES[name].encoders, *with_ears)
    assert set(ENCODERS) == {"student_speech_encoder", "teacher_speech_encoder", "text_encoder"}
    assert all(f"{encoder}_revision" in Recipe.model_fields for encoder in ENCODERS)


def test_who_learns_from_the_teacher_and_who_is_compared_with_whom():
    assert STUDENTS == ("ts", "cts")
    assert [name for name, stage in STAGES.items() if stage.is_conditional] == ["cts"]
    assert COMPARISONS == (("ts", "finetune"), ("cts", "finetune"), ("cts", "ts"))
    assert pairs_to_compare("test", ["cts", "finetune"]) == [("cts", "finetune")]
    builds_on = {name: stage.builds_on for name, stage in STAGES.items()}
    assert builds_on == {
        "audio": None,
        "text": None,
        "teacher": None,
        "finetune": "audio",
        "lexical": None,
        "ts": "finetune",
        "cts": "ts",
    }


def test_the_students_begin_with_the_words_and_follow_what_they_learn_from():
    starts = {name: stage.starts_from for name, stage in STAGES.items() if stage.starts_from is not None}
    assert starts == {"ts": "lexical", "cts": "lexical"}
    assert [name for name, stage in STAGES.items() if stage.learns_words] == ["lexical"]
    assert {name: followers(name) for name in STAGES if followers(name)} == {
        "teacher": ("ts", "cts"),
        "lexical": ("ts", "cts"),
    }


def test_a_stage_looks_the_same_in_every_figure():
    colours = ["#7f7f7f", "#E69F00", "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7"]
    assert [stage.colour for stage in STAGES.values()] == colours
    assert [stage.line_style for stage in STAGES.values()] == [":", ":", "--", "-", "-.", "-", "-"]


def test_students_come_after_all_that_they_need():
    order = list(STAGES)
    assert all(order.index("teacher") < order.index(student) for student in STUDENTS)
    assert all(
        order.index(stage.starts_from) < order.index(name) for name, stage in STAGES.items() if stage.starts_from
    )
    assert order[-len(STUDENTS) :] == list(STUDENTS)


def test_a_stage_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STAGES["ts"].needs_teacher = False


def test_a_recipe_takes_these_stages_and_no_others():
    recipe = Recipe(corpus={"name": "demo"}, output_dir="runs/x")
    assert recipe.stages == ["audio", "text", "teacher", "finetune", "ts", "cts"]
    with pytest.raises(ValidationError, match="'audio', 'text', 'teacher', 'finetune', 'lexical', 'ts' or 'cts'"):
        Recipe(corpus={"name": "demo"}, output_dir="runs/x", stages=["student"])
    with pytest.raises(ValidationError, match="'better', 'ts' or 'cts'"):
        Recipe(corpus={"name": "demo"}, output_dir="runs/x", kept_student="teacher")


EIGHTH = """
from dataclasses import replace
import cmkd.stages as stages

found = dict(stages.STAGES)
found["soft"] = replace(
    found["cts"], name="soft", label="soft student", short_name="soft T/S",
    compared_with=("finetune", "cts"), builds_on="cts",
)
stages.STAGES = found
stages.STUDENTS = ("ts", "cts", "soft")
stages.SYSTEM_NAMES = {name: stage.label for name, stage in found.items() if not stage.learns_words}
stages.COMPARISONS += (("soft", "finetune"), ("soft", "cts"))

from cmkd.reporting.report import format_systems
from cmkd.runs.recipe import Recipe
from cmkd.scoring.scores import NOTHING_COMPARED, pairs_to_compare

recipe = Recipe(corpus={"name": "demo"}, output_dir="runs/x", kept_student="soft")
print(recipe.kept_student)
print(NOTHING_COMPARED)
print(pairs_to_compare("test", ["soft", "cts"]))
print(format_systems({"systems": {}}))
"""


@pytest.mark.slow
def test_an_eighth_stage_is_one_entry(python, tmp_path):
    """Recipe, comparisons and report know a stage that only `STAGES`, and what is derived from it, know."""
    result = python.run(EIGHTH, environment={"HF_MODULES_CACHE": str(tmp_path)})  # so that nothing of ours is imported
    assert result.returncode == 0, result.stderr
    stage, nothing, pairs, *table = result.stdout.splitlines()
    assert stage == "soft"
    assert nothing == "Not known: it takes two of fine-tuned, T/S, cT/S and soft T/S."
    assert pairs == "[('soft', 'cts')]"
    assert table[-1].startswith("soft student") and "not run" in table[-1]
    assert "soft student" not in report.format_systems({"systems": {}})


def test_the_teacher_is_judged_where_there_is_one_or_a_student_needs_it(tmp_path):
    def judge(complete: set[str], **settings) -> None:
        judge_teacher(Recipe(corpus={"name": "demo"}, output_dir=str(tmp_path), **settings), complete, train=None)

    judge(set(), stages=["audio", "teacher"])  # no teacher, and nobody who needs it
    judge({"ts"}, stages=["ts"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"The stages ts and cts need a teacher, .* add the stage teacher"):
        judge(set(), stages=["ts"])


def test_the_main_path_is_short():
    assert len((ROOT / "train_distill.py").read_text().splitlines()) < 200
