"""Cards say what results.json says, all of it, and are refused where it says nothing."""

import copy
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_run import TERMS, make_results

from cmkd.hub.cards import TEMPLATES, metric_card, model_card, render, space_card, training_sources

DIMENSIONS = ("activation", "valence", "dominance")
CONFIG = {
    "label_scale": [1.0, 7.0],
    "embedding_size": 8,
    "num_trainable_layers": 1,
    "speech_config": {"model_type": "hubert", "num_hidden_layers": 2, "_name_or_path": "tones/speech"},
    "text_config": {"model_type": "bert", "num_hidden_layers": 1, "_name_or_path": "text"},
}
FILES = ["audio_cmkd.py", "config.json", "model.safetensors", "modeling_cmkd.py", "pipeline_cmkd.py", "windows_cmkd.py"]


@pytest.fixture(scope="module")
def made() -> dict:
    return make_results(Path("/nowhere"))


@pytest.fixture
def results(made) -> dict:
    return copy.deepcopy(made)


def card_of(results, **arguments) -> ModelCard:
    return model_card(results, CONFIG, FILES, "user/toys", "cmkd-0123", **arguments)


def rows(card, first_cell) -> list[list[str]]:
    """The cells after the first, of all rows that begin with it, and no cell is empty."""
    found = []
    for line in str(card).splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert all(cells), line
            if cells[0] == first_cell:
                found.append(cells[1:])
    return found


def test_scores_with_intervals_are_those_of_the_results(results):
    sizes, scores, differences = rows(card_of(results), "test")
    test = results["systems"]["cts"]["test"]
    expected = [
        f"{test['ccc'][name]:.3f} [{test['interval'][name][0]:.3f}, {test['interval'][name][1]:.3f}]"
        for name in DIMENSIONS
    ]
    assert scores == ["36", *expected]
    (entry,) = [
        entry
        for entry in results["comparisons"]
        if (entry["system"], entry["baseline"], entry["split"]) == ("cts", "finetune", "test")
    ]
    assert differences == [
        f"{entry['difference'][name]:+.3f} [{entry['interval'][name][0]:.3f}, {entry['interval'][name][1]:.3f}], "
        f"p = {entry['p'][name]:.3g} (at least {entry['smallest_p'][name]:.3g})"
        for name in DIMENSIONS
    ]
    assert sizes == ["36", "not measured", "9"]
    text = " ".join(str(card_of(results)).split())
    assert "In brackets the 95% interval over the 9 speakers of validation and the 9 speakers of test" in text
    assert "With these speakers it cannot be below 0.00391, however large the difference." in text
    assert "It was trained with one seed" in text


def test_a_card_of_several_seeds_says_so_with_their_spread(results):
    scores = {
        stage: {"ccc": dict.fromkeys(DIMENSIONS, 0.5), "std": dict.fromkeys(DIMENSIONS, 0.0123)}
        for stage in ("ts", "cts")
    }
    results["seeds"] = {"each": [5, 6, 7], "reason": "best", "test": scores}
    text = " ".join(str(card_of(results)).split())
    assert "This is the training with seed 7. It was done with the seeds 5, 6, 7, and this one is the best on" in text
    assert "activation 0.500 ± 0.012, valence 0.500 ± 0.012, dominance 0.500 ± 0.012." in text
    assert "one seed" not in text


def test_a_student_says_what_it_is_and_where_its_limits_are(results):
    card = " ".join(str(card_of(results)).split())
    for expected in (
        "0 is the minimum of the rating scale of the training corpus, 1, and 1 its maximum, 7",
        "**activation, valence, dominance**, in this order",
        "In brackets the 95% interval over the 9 speakers of",
        "It was trained with one seed; how much another seed would change was not measured.",
        "On 12.7% of the training utterances the teacher is more than 2 standard deviations off",
        "Those utterances were left out of the distance",
        "better mean CCC on validation (T/S 0.500, cT/S 0.600)",
        "Training utterances were of 1-2 s (30), 2-3 s (6)",
        "The language of the training speech is not recorded",
        "teacher 12 s, cts 30 s on 1 cpu process, at most 1.2 GB",
        "Left out: 3 (empty audio)",
        TERMS.rstrip("."),
        "Whether a model trained on it may be passed on or used commercially is for that agreement to say",
        "eprint = {2112.00158}",
    ):
        assert expected in card, expected
    assert "synthetic" not in card
    women = results["systems"]["cts"]["test"]["by_gender"]["female"]
    assert rows(card_of(results), "female") == [["16", *(f"{women['ccc'][name]:.3f}" for name in DIMENSIONS)]]


def test_the_speech_encoder_and_what_of_it_was_trained(results):
    """Moonshine counts its layers in fields of its own, of which one is the decoder's."""
    moonshine = {"model_type": "moonshine", "encoder_num_hidden_layers": 6, "decoder_num_hidden_layers": 5}
    for speech, trained, expected in (
        (CONFIG["speech_config"], 1, "hubert, 2 layers, the top 1 of them trained."),
        (moonshine | {"_name_or_path": "x"}, 0, "moonshine, 6 layers, frozen."),
        (moonshine | {"_name_or_path": "x"}, -1, "moonshine, 6 layers, all of it trained."),
    ):
        config = CONFIG | {"speech_config": speech, "num_trainable_layers": trained}
        card = model_card(results, config, FILES, "user/toys", "cmkd-0123")
        assert f"Speech encoder: {expected}" in " ".join(str(card).split())


def test_a_student_that_learned_the_words_first_says_so(results):
    assert "learned what the words say" not in str(card_of(results))
    results["starts_from"] = {results["student"]["stage"]: "lexical"}  # whatever the recipe asked for last
    results["cost"]["seconds"]["lexical"] = 70.0
    card = " ".join(str(card_of(results)).split())
    assert "learned what the words say, on the same speech and without any rating" in card
    assert "teacher 12 s, lexical 70 s, cts 30 s on 1 cpu process" in card
    listening = CONFIG | {"word_pieces": ["▁a", "b"]}
    card = " ".join(str(model_card(results, listening, FILES, "user/toys", "cmkd-0123")).split())
    assert "learned to hear 2 pieces of words" in card and "what the words say" not in card


@pytest.mark.parametrize(
    ("name", "commit", "bases"),
    [("user/listener", "0123abc", ["tones/speech", "user/listener"]), ("user/listener", "sha256-01", ["tones/speech"])],
)
def test_a_student_with_the_ears_of_another_one_owes_it_licence_and_data(results, name, commit, bases):
    plain = card_of(results).data
    assert (plain.license, plain.license_name, plain.base_model) == ("other", "toys-terms", ["tones/speech"])
    results["encoders"] = {"ears": {"name": name, "revision": None, "commit": commit}}
    listening = CONFIG | {"word_pieces": ["▁a", "b"]}
    card = model_card(results, listening, FILES, "user/toys", "cmkd-0123")
    assert card.data.license == "other" and card.data.license_name == "toys-terms-and-that-of-the-ears"
    assert card.data.base_model == bases
    text = " ".join(card.text.split())
    assert f"Its ears for words are those of another student, {name} at `{commit}`." in text
    assert "listens for 2 pieces of words beside what it hears of the voice, with the ears of another one" in text
    assert "learned to hear" not in text
    given = model_card(results, listening, [*FILES, "NOTICE"], "user/toys", "cmkd-0123", licence="mit")
    assert (given.data.license, given.data.license_name, given.data.to_dict().get("license_link")) == (
        "mit",
        None,
        None,
    )
    assert "[NOTICE](NOTICE) says under which terms the weights are given" in given.text
    teacher = card_of(results, is_teacher=True)
    assert teacher.data.license_name == "toys-terms" and name not in teacher.text


@pytest.mark.parametrize(
    ("number", "said"), [(2, "the top 2 as trained with"), (-1, "all of it as trained with"), (0, None)]
)
def test_layers_that_came_with_the_ears_are_named(results, number, said):
    results["encoders"] = {"ears": {"name": "user/x", "revision": None, "commit": "0123abc"}}
    config = CONFIG | {"word_pieces": ["a"], "num_trainable_layers": 0, "num_layers_of_ears": number}
    text = re.sub(r"\s+", " ", str(model_card(results, config, FILES, "user/toys", "cmkd-0123")))
    assert ("and the layers of its encoder that were trained with them, are those of another" in text) == bool(number)
    assert ("layers, frozen. ##" in text) == (number == 0)
    assert said is None or f"2 layers, frozen: {said} its ears for words." in text


@pytest.mark.parametrize(
    ("own", "of_ears", "expected"),
    [
        ("mit", ("cc-by-sa-4.0", None), ("cc-by-sa-4.0", None)),
        ("cc-by-nc-4.0", ("other", "odbl-and-cc-by-sa-4.0"), ("cc-by-nc-4.0", None)),
        ("apache-2.0", ("other", "odbl-and-cc-by-sa-4.0"), ("other", "odbl-and-cc-by-sa-4.0")),
        ("odbl", ("other", "odbl-and-cc-by-sa-4.0"), ("other", "odbl-and-cc-by-sa-4.0")),
        ("mit", ("other", "toys-terms"), ("other", "mit-and-toys-terms")),
        ("mit", ("openrail", None), ("other", "mit-and-openrail")),
        ("mit", None, ("other", "mit-and-that-of-the-ears")),
    ],
)
def test_the_licence_of_the_ears_counts_as_that_of_a_corpus(results, own, of_ears, expected):
    results["corpus"] |= {"terms": "", "licence": own}
    stated = None if of_ears is None else dict(zip(("identifier", "name"), of_ears, strict=True))
    results["encoders"] = {"ears": {"name": "user/x", "revision": None, "commit": "0123abc", "licence": stated}}
    listening = CONFIG | {"word_pieces": ["▁a", "b"]}
    card = model_card(results, listening, FILES, "user/toys", "cmkd-0123")
    assert (card.data.license, card.data.license_name) == expected
    name = "" if of_ears is None else f", {of_ears[1] or of_ears[0]}"
    assert f"and so does its licence{name}: read the card" in " ".join(card.text.split())


def test_what_is_spoken_for_the_teacher_to_judge_is_english_and_synthetic():
    corpus = {"terms": "", "licence": "cc-by-sa-4.0"}
    source = training_sources(corpus | {"name": "spoken-sentences"})[0]
    assert source.is_synthetic and source.language == "en"
    acted = training_sources({"terms": "", "name": "crema-d"})[0]
    assert acted.language == "en" and not acted.is_synthetic and "its labels are derived" in acted.licence.text


def test_every_snippet_pins_the_revision(results):
    for is_teacher in (False, True):
        snippets = re.findall(r"```python\n(.*?)```", str(card_of(results, is_teacher=is_teacher)), re.DOTALL)
        assert len(snippets) == (1 if is_teacher else 2)
        for snippet in snippets:
            compile(snippet, "card", "exec")
            assert "revision" in snippet and '"cmkd-0123"' in snippet and '"user/toys"' in snippet


def test_model_index_survives_the_round_trip(results, tmp_path):
    card_of(results).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    found = {entry.metric_config: entry.metric_value for entry in data.eval_results}
    expected = results["systems"]["cts"]["test"]["ccc"]
    assert found == {name: round(expected[name], 4) for name in DIMENSIONS}
    assert {entry.dataset_split for entry in data.eval_results} == {"test"}
    assert {entry.dataset_name for entry in data.eval_results} == {"toys 1.0"}
    assert (data.license, data.license_name, data.language) == ("other", "toys-terms", None)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "audio-classification")
    assert data.base_model == ["tones/speech"]
    assert data.to_dict() == ModelCard(str(ModelCard.load(tmp_path / "README.md"))).data.to_dict()


def test_the_metadata_is_what_the_hub_takes_for_a_card(results):
    text = str(card_of(results))
    assert text.startswith("---\n") and text.count("\n---\n") == 1
    assert "{{" not in text and "{%" not in text


@pytest.mark.parametrize(
    ("name", "licence", "sentence"),
    [
        ("spoken-demo", "apache-2.0", "They may be used for anything."),
        ("spoken-emobank", "cc-by-sa-4.0", "attribute EmoBank, and share what is derived from it under the same"),
        ("crema-d", "odbl", "share a database that is derived from it under the same licence"),
        ("manifest", "other", "The licence of the training data is not recorded"),
    ],
)
def test_open_corpora_carry_their_licence(results, name, licence, sentence):
    results["corpus"] |= {"name": name, "terms": ""}
    card = card_of(results)
    assert card.data.license == licence and sentence in " ".join(str(card).split())
    assert ("**synthetic speech**" in str(card)) == (name not in ("crema-d", "manifest"))
    assert card_of(results, licence="mit").data.license == "mit"


def test_what_is_not_defined_is_said_in_words(results):
    test = results["systems"]["cts"]["test"]
    test["ccc"]["dominance"] = test["interval"]["dominance"] = test["interval"]["valence"] = None
    test["by_gender"] = {}
    for entry in results["comparisons"]:
        entry["difference"]["dominance"] = entry["interval"]["dominance"] = entry["interval"]["valence"] = None
    results["corpus"]["durations"] = {"train": {}}
    card = card_of(results)
    _, scores, differences = rows(card, "test")
    assert scores[3] == differences[2] == "not rated"
    assert scores[2].endswith("(one speaker: no interval)") and differences[1].endswith("(one speaker: no test)")
    assert "gender of the speakers is not known" in str(card) and "was not measured" in str(card)
    assert [entry.metric_config for entry in card.data.eval_results] == ["activation", "valence"]


@pytest.mark.parametrize("stage", ["ts", "cts"])
def test_a_run_of_one_stage_says_that_baseline_and_teacher_are_not_in_it(stage):
    results = make_results(Path("/nowhere"), systems=(stage,))
    results["student"] = {"stage": stage, "reason": "named by the recipe"}
    results["cost"]["seconds"] = {stage: 34.5}
    card = card_of(results)
    text = " ".join(str(card).split())
    for expected in (
        "was not fine-tuned without a teacher in this run, so there is no baseline to compare with",
        "The teacher was trained in another run, so this one does not have its scores",
        "On 12.7% of the training utterances",
        f"{stage} 34 s (the teacher's training, in another run, comes on top) on 1 cpu process",
    ):
        assert expected in text, expected
    _, scores = rows(card, "test")  # and no row of differences
    test = results["systems"][stage]["test"]
    assert [cell[:5] for cell in scores[1:]] == [f"{test['ccc'][name]:.3f}" for name in DIMENSIONS]
    with pytest.raises(ValueError, match="no scores of 'teacher'"):
        card_of(results, is_teacher=True)


def test_a_run_that_has_baseline_and_teacher_does_not_say_they_are_missing(results):
    text = str(card_of(results))
    assert "another run" not in text and "no baseline" not in text


def remove(results, path):
    *parents, last = path.split(".")
    for parent in parents:
        results = results[parent]
    del results[last]


@pytest.mark.parametrize(
    "path",
    [
        "student",
        "comparisons",
        "conditioning",
        "conditioning.discarded_fraction",
        "conditioning.residual_std.valence",
        "confidence.permutations",
        "corpus.version",
        "corpus.terms",
        "corpus.durations",
        "corpus.speakers.test",
        "cost.seconds.cts",
        "cost.seconds.teacher",
        "cost.device",
        "seed",
        "systems.cts",
        "systems.cts.test",
        "systems.cts.test.ccc.valence",
        "systems.cts.test.interval",
        "systems.cts.validation.n",
        "systems.cts.test.by_gender",
    ],
)
def test_a_missing_figure_is_an_error_and_no_empty_cell(results, path):
    remove(results, path)
    with pytest.raises(ValueError, match="results.json|hub_cards/model_student.md"):
        card_of(results)


def test_a_comparison_that_is_missing_is_an_error(results):
    results["comparisons"] = [entry for entry in results["comparisons"] if entry["split"] != "test"]
    with pytest.raises(ValueError, match=r"hub_cards/.*'test'.*empty place"):
        card_of(results)


@pytest.mark.parametrize("value", [float("nan"), "0.5", None, True])
def test_what_is_no_number_is_refused(results, value):
    results["conditioning"]["discarded_fraction"] = value
    with pytest.raises(ValueError, match="must be a finite number"):
        card_of(results)


def test_cards_of_metric_and_space():
    card = metric_card("CCC: how well", "Agreement.", "predictions: numbers", "@article{lin}")
    assert ModelCard(card).data.to_dict()["title"] == "CCC: how well" and "@article{lin}" in card
    fields = ModelCard(space_card("user/toys", "0123", "mit")).data.to_dict()
    assert (fields["models"], fields["sdk"], fields["license"]) == (["user/toys"], "static", "mit")
    assert "license" not in ModelCard(space_card("user/toys", "0123", None)).data.to_dict()


def test_every_template_refuses_a_missing_value():
    templates = [path.name for path in TEMPLATES.glob("[!_]*.md")]
    assert sorted(templates) == ["dataset.md", "metric.md", "model_student.md", "model_teacher.md", "space.md"]
    for name in templates:
        with pytest.raises(ValueError, match=f"hub_cards/{name}: .*is undefined"):
            render(name)


def test_results_are_not_changed(results, made):
    card_of(results)
    assert json.dumps(results) == json.dumps(made)


def test_a_control_is_no_system_to_use(results):
    assert "Control:" not in str(card_of(results))
    results["control"] = "shuffled_teacher"
    text = str(card_of(results))
    said = "**Control: shuffled_teacher, each utterance is taught what the teacher knows about another one; not a sys"
    assert text.index(said) < text.index("## How to use")
    assert "Control:" not in str(card_of(results, is_teacher=True))  # nothing was taken from it


def test_the_card_says_how_the_teacher_was_judged(results):
    results["conditioning"] |= {
        "quality": "soft",
        "cross_fitting": {"folds": 5, "seconds": 9.0},
        "discarded_fraction": 0.0,
        "mean_weight": 0.625,
    }
    text = " ".join(str(card_of(results)).split())
    assert "residuals on train, each of a teacher that has not heard the speaker (cross-fitting, 5 folds), have" in text
    assert "to a half where one of them is at that threshold (quality soft); its mean is 0.625." in text
    assert "The threshold is 2 standard deviations." in text and "were left out" not in text
