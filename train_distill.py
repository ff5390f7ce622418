"""Cross-modal conditional teacher-student training (arXiv 2112.00158), end to end.

    cmkd train recipes/demo.yaml
    cmkd train recipes/demo.yaml --seeds 0 1 2 --output_dir runs/demo_seeds
    accelerate launch train_distill.py recipes/demo.yaml --seed 1 --output_dir runs/demo_1 --stages teacher cts

`python train_distill.py` is `cmkd train`. `cmkd train RECIPE --help` lists all settings with the values of that recipe.

Stages, in order: `audio` (frozen speech encoder), `text`, `teacher` (both, frozen), `finetune` (audio-only, top layers
trained), `lexical` (only if it is asked for: the same, taught what the words are), `ts` (as `finetune`, pulled towards
the teacher's embeddings) and `cts` (the same, but only where the teacher is judged good). A stage that is complete in
the output folder is not repeated. With `seeds` all of it is done for each, and summed up. The settings are in
cmkd/runs/recipe.py, what each stage is in cmkd/stages.py.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from cmkd.command_line import failures_in_words
from cmkd.corpora.schema import SPLITS, Corpus
from cmkd.corpora.sources import corpora_of
from cmkd.features.labels import unit_interval_labels
from cmkd.hub.push import check_push, push_run
from cmkd.json_files import write_json
from cmkd.processes import join_launch, leave_launch, main_process_first, print_once, wait_for_all
from cmkd.reporting.report import format_systems, write_report
from cmkd.reporting.seeds_report import format_seeds, write_seeds_report
from cmkd.runs.checkpoints import usable_checkpoint
from cmkd.runs.cost import SessionCost
from cmkd.runs.ears import hear_once
from cmkd.runs.fold_teachers import cross_fit
from cmkd.runs.folder import (
    begin_stage,
    check_kind,
    complete_stage,
    complete_stages,
    judge_teacher,
    keep_student,
    record_session,
    remove_checkpoints,
    write_embeddings,
    write_results,
)
from cmkd.runs.lexical import begin_with_start, train_lexical
from cmkd.runs.preflight import (
    check_devices,
    check_encoders,
    check_labels,
    check_teachers,
    check_words,
    warn_of_steps,
)
from cmkd.runs.recipe import Recipe, load_recipe, split_recipe
from cmkd.runs.seeds import gather_seeds
from cmkd.runs.stage import build_model, labelled_inputs, training_arguments, training_data, training_log, training_rows
from cmkd.runs.unlabelled import judge_unlabelled
from cmkd.scoring.evaluation import write_predictions
from cmkd.stages import STAGES, STUDENTS, TEACHER
from cmkd.training.collator import collate_utterances
from cmkd.training.trainer import CMKDTrainer, split_metrics


def main(arguments: Sequence[str], command: str = "cmkd train") -> None:
    path, settings = split_recipe(arguments, command, str(__doc__))
    recipe = load_recipe(path, settings, command)
    run = Path(recipe.output_dir)
    transformers_logging.disable_progress_bar()
    state = join_launch()
    check_devices()
    commits = check_encoders(recipe)
    if recipe.hub_model_id is not None:
        check_push(recipe.hub_model_id)
    with main_process_first("build the corpus"):
        corpus = recipe.load_corpus()
    print_once(corpus.report)
    check_labels(corpus)
    check_words(recipe, corpus)
    warn_of_steps(recipe, corpus)
    version, unlabelled = corpus.report.version, corpus.report.unlabelled_version
    check_teachers(recipe, corpus, commits)
    check_kind(run, "single" if recipe.seeds is None else "seeds")
    complete = [complete_stages(training, version, commits, unlabelled) for training in recipe.trainings]
    wait_for_all("read the corpus")
    if recipe.seeds is not None and state.is_main_process:
        (run / "results.json").unlink(missing_ok=True)  # the summary is made anew at the end
    for training, stages in zip(recipe.trainings, complete, strict=True):
        if recipe.seeds is not None:
            print_once(f"\nseed {training.seed} of {recipe.seeds}")
        train_stages(training, corpus, stages, commits)
    if state.is_main_process:
        if recipe.seeds is not None:
            results = gather_seeds(run, recipe.seeds)
            print_once(f"\n{format_seeds(results)}\n\nReport: {write_seeds_report(run)}")
        if recipe.hub_model_id is not None:
            print_once(push_run(run, recipe.hub_model_id, private=recipe.hub_private))
    leave_launch()


def train_stages(recipe: Recipe, corpus: Corpus, complete: set[str], commits: dict[str, str]) -> None:
    """One training: the teacher and what needs none, the judgement of the teacher, the students, the report.

    Args:
        recipe: with one seed.
        corpus: with the splits train, validation and test, and unlabelled if there is such speech.
        complete: the stages that are not to be repeated.
        commits: as `check_encoders` returns them.
    """
    state, run = PartialState(), Path(recipe.output_dir)
    without_teacher = [stage for stage in STAGES if stage in recipe.stages and stage not in STUDENTS]
    students = [stage for stage in STUDENTS if stage in recipe.stages]
    for stage in without_teacher:
        run_stage(stage, recipe, corpus, complete, commits)
    cross_fit(recipe, corpus, complete, commits, run_stage)
    if state.is_main_process:
        judge_teacher(recipe, complete, corpus["train"])  # Eq. 8
    judge_unlabelled(recipe, corpus, complete)
    for stage in students:
        run_stage(stage, recipe, corpus, complete, commits)
    if state.is_main_process:
        student = keep_student(run, recipe.kept_student)
        results = write_results(run, corpus.report.to_dict(), recipe, student)
        print_once(f"\n{format_systems(results)}\n\nReport: {write_report(run)}")
    wait_for_all("write the report")


def run_stage(stage: str, recipe: Recipe, corpus: Corpus, complete: set[str], commits: dict[str, str]) -> None:
    """Trains a stage that is not complete, from where it stopped, and keeps account of what it costs."""
    state, run = PartialState(), Path(recipe.output_dir)
    if stage in complete:
        print_once(f"\n{stage}: complete, not repeated")
        if state.is_main_process:
            remove_checkpoints(run, stage)
        return
    cost = SessionCost(partial(record_session, run, stage))
    if state.is_main_process:
        begin_stage(run, stage, recipe, corpus.report.version, commits, corpus.report.unlabelled_version)
    wait_for_all(f"begin the stage {stage}")
    with cost.until_interrupted(state.is_main_process):
        train = train_lexical if STAGES[stage].learns_words else train_stage
        train(stage, recipe.pinned(commits), corpus, run, cost)


def train_stage(stage: str, recipe: Recipe, corpus: Corpus, run: Path, cost: SessionCost) -> None:
    """Trains one system, evaluates it on every split, and saves its checkpoint and predictions."""
    print_once(f"\n{stage}")
    folder = run / stage
    set_seed(recipe.seed)
    rows = {split: corpus[split] for split in SPLITS} | {"learned": training_rows(STAGES[stage], corpus)}
    labels = {name: unit_interval_labels(of_name) for name, of_name in rows.items()}
    scale = [float(limit) for limit in corpus.report.label_scale]
    model, feature_extractor, tokenizer = build_model(STAGES[stage], recipe, labels["train"], scale)
    wait_for_all("load the encoders")
    model.to(PartialState().device)
    datasets = labelled_inputs(model, corpus, rows, labels, feature_extractor, tokenizer, recipe)
    begin_with_start(model, stage, recipe)  # after all is stored: its frozen layers are the same
    hear_once(model, datasets, {name: of_name["duration"] for name, of_name in rows.items()})

    trainer = CMKDTrainer(
        model=model,
        args=training_arguments(recipe, folder),
        eval_dataset=datasets["validation"],
        data_collator=collate_utterances,
        compute_metrics=partial(split_metrics, corpora=corpora_of(rows["validation"])),
        **training_data(STAGES[stage], run, datasets["learned"], rows["learned"], recipe),
    )
    trainer.add_callback(cost)
    with main_process_first("read the checkpoints"):
        checkpoint = usable_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    trainer.compute_metrics = None  # it is for validation, and scores are taken from what is written
    for split in SPLITS:
        (logits, embeddings), _, _ = trainer.predict(datasets[split])
        if trainer.is_world_process_zero():
            path = run / "predictions" / f"{stage}_{split}.parquet"
            ids, speakers, genders = (list(rows[split][name]) for name in ("id", "speaker", "gender"))
            write_predictions(path, ids, logits, labels[split], speakers, genders, corpora_of(rows[split]))
            if stage == TEACHER and split == "train":
                write_embeddings(run, ids, embeddings)
    weights = trainer.accelerator.get_state_dict(trainer.model)  # with FSDP from the shards of all processes
    if trainer.is_world_process_zero():
        model.save_pretrained(folder, state_dict=weights)
        for part in (feature_extractor, tokenizer):
            if part is not None:
                part.save_pretrained(folder)
        write_json(folder / "training_log.json", training_log(trainer.state.log_history))
        complete_stage(run, stage, cost.so_far())
    wait_for_all(f"save the stage {stage}")


if __name__ == "__main__":
    with failures_in_words("train_distill"):
        main(sys.argv[1:], "train_distill.py")
