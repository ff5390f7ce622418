"""Several corpora in one run, and speech without labels: names, scales, shares, leaks and licences."""

import json
import math
import shutil

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import soundfile

from cmkd.corpora import load_corpus, sources
from cmkd.corpora.licences import check_licence, strictest
from cmkd.corpora.report import CorpusError
from cmkd.corpora.sources import load_run_corpus, same_sounds, sentence_key
from cmkd.corpora.transcripts import SCHEMA
from cmkd.features.audio import digest_audio
from cmkd.features.labels import unit_interval_labels
from cmkd.runs.stage import training_rows
from cmkd.stages import STAGES


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def noise(path, seed, samples=800):
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, samples), 16000)


def write(folder, rows, columns="id,audio,transcript,activation,valence,dominance,speaker,split"):
    """A manifest; each row is text, and its sound is noise named after its id, with the seed that stands for it."""
    folder.mkdir(exist_ok=True)
    for row, seed in rows.items():
        noise(folder / f"{row.split(',')[0]}.wav", seed)
    lines = [f"{row.split(',')[0]},{row.split(',')[0]}.wav,{row.partition(',')[2]}" for row in rows]
    (folder / "manifest.csv").write_text("\n".join([columns, *lines]) + "\n")
    return {"name": "manifest", "data_dir": str(folder)}


@pytest.fixture
def first(tmp_path):
    """Three dimensions on a scale of 1 to 7, with the speakers and ids that the second has, too."""
    rows = {f"u{index},Sentence {index}.,{1 + index},4,{7 - index},ann,train": index for index in range(4)}
    rows |= {"v0,Held out one.,1,2,3,bob,dev": 10, "v1,Yes?,3,4,5,bob,dev": 11}
    rows |= {"t0,Held out TWO!,1,2,3,cat,test": 12, "t1,Then three.,7,4,5,cat,test": 13}
    return write(tmp_path / "first", rows) | {"alias": "first", "label_scale": [1, 7]}


@pytest.fixture
def second(tmp_path):
    """No dominance, on a scale of 0 to 5."""
    rows = {f"u{index},Another {index}.,{index},5,,ann,train": 20 + index for index in range(3)}
    rows |= {"v0,Valid.,1,2,,bob,dev": 30, "t0,Tested.,1,2,,cat,test": 31, "t1,Tested too.,5,1,,cat,test": 32}
    return write(tmp_path / "second", rows) | {"alias": "second", "label_scale": [0, 5]}


@pytest.fixture
def unrated(tmp_path):
    """Neither ratings nor splits."""
    rows = {f"w{index},Nobody rated {index}.": 40 + index for index in range(5)}
    return write(tmp_path / "unrated", rows, "id,audio,transcript") | {"alias": "plain"}


def test_two_corpora_keep_names_and_scales_of_their_own(first, second):
    corpus = load_run_corpus([first, second])
    train = corpus["train"]
    assert train["id"] == [f"first/u{index}" for index in range(4)] + [f"second/u{index}" for index in range(3)]
    assert train["speaker"] == ["first/ann"] * 4 + ["second/ann"] * 3
    assert train["corpus"] == ["first"] * 4 + ["second"] * 3
    expected = [[index / 6, 0.5, 1 - index / 6] for index in range(4)] + [[i / 5, 1, math.nan] for i in range(3)]
    np.testing.assert_allclose(unit_interval_labels(train), expected, atol=1e-6)
    report = corpus.report
    assert report.label_scale == (0.0, 1.0) and report.name == "first + second"
    assert report.utterances == {"train": 7, "validation": 3, "test": 4}
    assert report.speakers == {"train": 2, "validation": 2, "test": 2}
    content = json.loads(json.dumps(report.to_dict()))
    assert content["corpora"]["first"]["labels"]["train"]["activation"]["mean"] == pytest.approx(2.5)  # on 1 to 7
    assert content["corpora"]["second"]["labels"]["train"]["valence"] == {"rated": 3, "mean": 5.0, "std": 0.0}
    assert content["labels"]["train"]["valence"]["mean"] == pytest.approx((4 * 0.5 + 3 * 1) / 7)
    assert content["labels"]["train"]["dominance"]["rated"] == 4
    assert content["corpora"]["second"]["label_scale"] == [0.0, 5.0]
    assert "[first] manifest" in str(report) and "[second] manifest" in str(report)


def test_of_a_corpus_only_some_dimensions_may_be_used(first, second):
    whole = load_run_corpus([first, second])
    corpus = load_run_corpus([first | {"rated_dimensions": ["valence"]}, second])
    expected = [[math.nan, 0.5, math.nan]] * 4 + [[i / 5, 1, math.nan] for i in range(3)]
    np.testing.assert_allclose(unit_interval_labels(corpus["train"]), expected, atol=1e-6)
    assert np.isnan(corpus["test"]["activation"][:2]).all() and not np.isnan(corpus["test"]["valence"]).any()
    assert {name: rows["id"] for name, rows in corpus.items()} == {name: rows["id"] for name, rows in whole.items()}
    labels = corpus.report.corpora["first"].labels["train"]
    assert {name: of_one["rated"] for name, of_one in labels.items()} == {"activation": 0, "valence": 4, "dominance": 0}
    assert "first: ratings that are not used: activation, dominance" in corpus.report.notes
    assert corpus.report.version != whole.report.version
    alone = load_run_corpus(first | {"rated_dimensions": ["valence"]})
    np.testing.assert_allclose(unit_interval_labels(alone["train"]), expected[:4], atol=1e-6)


def test_dimensions_that_are_not_rated_cannot_be_used(first, second, unrated):
    rated = "activation, valence"
    for named in (["valence", "dominance"], []):
        with pytest.raises(ValueError, match=f"rated_dimensions of second is .* of those that it rates: {rated}."):
            load_run_corpus([first, second | {"rated_dimensions": named}])
    with pytest.raises(ValueError, match="rated_dimensions of plain is .*no ratings of unlabelled speech are used"):
        load_run_corpus(first, unrated | {"rated_dimensions": ["valence"]})


def test_one_scale_of_all_stays_the_scale(first, second):
    second["label_scale"] = [1, 7]
    second["on_error"] = "skip"  # of labels of 0
    corpus = load_run_corpus([first, second])
    assert corpus.report.label_scale == (1.0, 7.0)
    assert corpus.report.skipped["outside the scale"] == 1


def test_the_version_is_that_of_all(first, second, tmp_path):
    before = load_run_corpus([first, second]).report.version
    assert load_run_corpus([first, second]).report.version == before
    table = tmp_path / "second/manifest.csv"
    table.write_text(table.read_text().replace("Tested.", "Tested!"))
    assert load_run_corpus([first, second]).report.version != before


def test_two_corpora_of_one_name_are_refused(first, second):
    del first["alias"], second["alias"]
    with pytest.raises(ValueError, match="2 corpora of this run are called 'manifest': give each a name of its own"):
        load_run_corpus([first, second])
    with pytest.raises(ValueError, match="alias is 'a/b', but must consist of letters"):
        load_run_corpus([first | {"alias": "a/b"}, second])
    with pytest.raises(ValueError, match="but no name: say which corpus it is"):
        load_run_corpus([{"alias": "first"}, second])


def test_a_sound_in_two_splits_of_two_corpora(first, second, tmp_path):
    """By its samples, whatever the file: the training utterance is the one that has to go."""
    samples, rate = soundfile.read(tmp_path / "first/t0.wav", dtype="int16")
    soundfile.write(tmp_path / "second/u1.flac", samples, rate)
    table = tmp_path / "second/manifest.csv"
    table.write_text(table.read_text().replace("u1.wav", "u1.flac"))
    with pytest.raises(CorpusError) as caught:
        load_run_corpus([first, second])
    (problem,) = caught.value.report.problems
    assert (problem.id, problem.reason) == ("second/u1", "same sound in two splits")
    assert problem.detail == "also first/t0, split test"
    assert "on_error: skip" in str(caught.value)

    corpus = load_run_corpus([first, second | {"on_error": "skip"}])
    assert "second/u1" not in corpus["train"]["id"] and len(corpus["train"]) == 6
    assert corpus.report.skipped == {"same sound in two splits": 1}
    assert corpus.report.corpora["second"].utterances["train"] == 2


def test_what_two_corpora_share_within_a_split_or_in_words_gets_a_note(first, second, tmp_path):
    shutil.copy(tmp_path / "first/u0.wav", tmp_path / "second/u0.wav")
    table = tmp_path / "second/manifest.csv"
    table.write_text(table.read_text().replace("Another 2.", "held out: TWO"))
    notes = load_run_corpus([first, second]).report.notes
    assert "1 sound in the same split of two corpora" in notes
    assert "1 sentence of first's validation or test also in the training split of second" in notes


def test_same_sounds_reads_only_what_is_equally_long(tmp_path, monkeypatch):
    corpora = []
    for name, lengths in (("a", (800, 900, 1000)), ("b", (700, 1000, 900))):
        rows = {f"u{i},x,1,2,3,s,train": 0 for i in range(3)}
        given = write(tmp_path / name, rows)
        for index, samples in enumerate(lengths):
            noise(tmp_path / name / f"u{index}.wav", samples + (name == "b" and samples == 900), samples)
        corpora.append(load_corpus(**given, label_scale=(1, 7))["train"])
    read = []
    monkeypatch.setattr(
        sources, "digest_audio", lambda audio, **part: read.append(audio["path"]) or digest_audio(audio, **part)
    )
    assert same_sounds(*corpora) == [(2, 1)]
    assert len(read) == 4


def test_speech_without_ratings_needs_neither_labels_nor_splits_nor_a_scale(unrated):
    del unrated["alias"]
    corpus = load_corpus(**unrated, rated=False)
    assert list(corpus) == ["train"] and len(corpus["train"]) == 5
    assert np.isnan(corpus["train"]["valence"]).all()
    assert "not rated" in str(corpus.report)
    with pytest.raises(ValueError, match="'manifest' needs 'label_scale'.*takes rated=False"):
        load_corpus(**unrated)
    with pytest.raises(CorpusError, match="no column 'split'"):
        load_corpus(**unrated, label_scale=(1, 7))


def test_ratings_are_not_read_where_nothing_is_rated(first):
    arguments = {name: value for name, value in first.items() if name not in ("alias", "label_scale")}
    corpus = load_corpus(**arguments, rated=False)
    assert list(corpus) == ["train", "validation", "test"]
    assert all(np.isnan(rows[name]).all() for rows in corpus.values() for name in ("activation", "dominance"))
    assert "ratings are not read: 'activation', 'valence', 'dominance'" in corpus.report.notes


def test_a_data_set_without_ratings(tmp_path, unrated):
    rows = {"audio": [str(tmp_path / "unrated" / f"w{index}.wav") for index in range(3)], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    corpus = load_corpus("dataset", path=str(tmp_path / "saved"), columns={"transcript": "text"}, rated=False)
    assert corpus["train"]["transcript"] == ["a", "b", "c"] and np.isnan(corpus["train"]["valence"]).all()


def test_unlabelled_speech_is_a_split_of_its_own(first, second, unrated):
    corpus = load_run_corpus(first, [unrated, second])
    rows = corpus["unlabelled"]
    assert corpus["train"]["id"] == ["u0", "u1", "u2", "u3"]  # of the one corpus, as without
    assert rows["id"] == [f"plain/w{index}" for index in range(5)] + [f"second/u{index}" for index in range(3)]
    assert rows["speaker"] == [""] * 5 + ["second/ann"] * 3
    assert np.isnan(unit_interval_labels(rows)).all()  # the ratings of `second` are dropped
    assert rows["asr_confidence"] == [1.0] * 8
    assert set(rows["split"]) == {"unlabelled"}
    report = corpus.report
    assert report.utterances == {"train": 4, "validation": 2, "test": 2, "unlabelled": 8}
    assert report.version == load_corpus("manifest", first["data_dir"], label_scale=(1, 7)).report.version
    assert report.unlabelled_version and report.unlabelled_version != (
        load_run_corpus(first, unrated).report.unlabelled_version
    )
    assert list(report.to_dict()["unlabelled"]["corpora"]) == ["plain", "second"]


@pytest.mark.parametrize("how", ["refuse", "leave_out", "allow"])
def test_a_held_out_sentence_in_unlabelled_speech(first, unrated, tmp_path, how):
    table = tmp_path / "unrated/manifest.csv"
    table.write_text(table.read_text().replace("Nobody rated 3.", "held out: two"))
    if how == "refuse":
        message = "1 unlabelled utterance says a sentence of validation or test: 'plain/w3'.*leave_out"
        with pytest.raises(ValueError, match=message):
            load_run_corpus(first, unrated)
        return
    corpus = load_run_corpus(first, unrated, same_sentences=how)
    assert ("plain/w3" in corpus["unlabelled"]["id"]) == (how == "allow")
    left_out = {"unlabelled, with a sentence of validation or test": 1} if how == "leave_out" else {}
    assert corpus.report.skipped == left_out
    assert any("scores on these sentences are too good" in text for text in corpus.report.warnings) == (how == "allow")


def test_a_held_out_sound_in_unlabelled_speech_is_never_taken(first, unrated, tmp_path):
    shutil.copy(tmp_path / "first/v1.wav", tmp_path / "unrated/w2.wav")
    with pytest.raises(CorpusError, match="must not hold an utterance of validation or test") as caught:
        load_run_corpus(first, unrated, same_sentences="allow")
    (problem,) = caught.value.report.problems
    assert (problem.id, problem.detail) == ("plain/w2", "also v1, split validation")


def test_what_cannot_be_unlabelled_speech_is_refused(first, unrated, tmp_path):
    rows = {"x0,A word.,dev": 50}
    held = write(tmp_path / "held", rows, "id,audio,transcript,split") | {"alias": "held"}
    with pytest.raises(ValueError, match="corpus held has no split train, only validation"):
        load_run_corpus(first, held)
    silent = write(tmp_path / "silent", {"x0,": 50, "x1,": 51}, "id,audio,transcript") | {"alias": "silent"}
    with pytest.raises(ValueError, match="no utterance of the unlabelled corpus silent has words.*cmkd transcribe"):
        load_run_corpus(first, silent)
    with pytest.raises(ValueError, match="same_sentences is 'warn', but must be one of refuse, leave_out, allow"):
        load_run_corpus(first, unrated, same_sentences="warn")


def test_confidence_is_that_of_the_recogniser_where_it_wrote_the_words(first, unrated, tmp_path):
    """Two manual transcripts, one of them what was heard; two that were heard; one in which nothing was."""
    table = tmp_path / "unrated/manifest.csv"
    table.write_text("\n".join(line if index < 3 else f"{line.rpartition(',')[0]},"
                               for index, line in enumerate(table.read_text().splitlines())) + "\n")  # fmt: skip
    heard = [
        ("w0", "Something else.", -0.5, 0.1),
        ("w2", "yes it was", math.log(0.8), 0.25),
        ("w3", "no", math.log(0.5), None),
        ("w4", "", None, 0.9),
    ]
    of_all = {"duration": 0.05, "model": "toy", "revision": "1", "settings": "{}"}
    names = ("id", "text", "average_log_probability", "no_speech_probability")
    rows = [dict(zip(names, values, strict=True)) | of_all for values in heard]
    pq.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), tmp_path / "words.parquet")
    corpus = load_run_corpus(first, unrated | {"transcripts": str(tmp_path / "words.parquet")})
    assert corpus["unlabelled"]["transcript"] == ["Nobody rated 0.", "Nobody rated 1.", "yes it was", "no", ""]
    assert corpus["unlabelled"]["asr_confidence"] == pytest.approx([1.0, 1.0, 0.8 * 0.75, 0.5, 0.0], abs=1e-6)
    assert "1 utterance of the unlabelled corpus plain without words" in corpus.report.notes


def many(folder, name, number):
    rows = {f"u{index},Many {index}.,{1 + index % 7},{1 + index % 5},,s{index % 3},train": 100 + index
            for index in range(number)}  # fmt: skip
    rows |= {"v0,V.,1,2,,v,dev": 90, "v1,V.,3,4,,v,dev": 91, "t0,T.,1,2,,t,test": 92, "t1,T.,2,3,,t,test": 93}
    return write(folder / name, rows) | {"alias": name, "label_scale": [1, 7]}


def test_a_larger_share_of_labels_has_those_of_a_smaller_one(tmp_path):
    given = many(tmp_path, "many", 40)
    found = {share: load_run_corpus(given, labelled_share=share) for share in (0.1, 0.3, 1.0)}
    labelled = {share: set(corpus["train"]["id"]) for share, corpus in found.items()}
    assert [len(ids) for ids in labelled.values()] == [4, 12, 40]
    assert labelled[0.1] < labelled[0.3] < labelled[1.0]
    assert "unlabelled" not in found[1.0]
    for share in (0.1, 0.3):
        rest = found[share]["unlabelled"]
        assert set(rest["id"]) == labelled[1.0] - labelled[share]
        assert np.isnan(rest["valence"]).all() and set(rest["asr_confidence"]) == {1.0}
        assert found[share]["test"]["id"] == found[1.0]["test"]["id"]
        assert found[share].report.utterances["train"] == len(labelled[share])
    assert len({corpus.report.version for corpus in found.values()}) == 3
    assert set(load_run_corpus(given, labelled_share=0.3, labelled_seed=1)["train"]["id"]) != labelled[0.3]
    without = load_run_corpus(given, labelled_share=0.3, unlabelled_rest=False)
    assert "unlabelled" not in without and set(without["train"]["id"]) == labelled[0.3]
    with pytest.raises(ValueError, match="labelled_share is 0, but must be above 0 and at most 1"):
        load_run_corpus(given, labelled_share=0)


def test_hours_of_no_unlabelled_speech_are_refused(first):
    for settings in ({}, {"labelled_share": 0.5, "unlabelled_rest": False}, {"labelled_share": 0.99}):
        with pytest.raises(ValueError, match="unlabelled_hours is 2, but there is no unlabelled speech"):
            load_run_corpus(first, unlabelled_hours=2, **settings)


def test_speech_beside_one_corpus_is_another_corpus(first, second, unrated):
    """So that the loss takes its CCC within each; the rest of a corpus is of that corpus."""
    student, teacher = STAGES["ts"], STAGES["teacher"]
    assert "corpus" not in training_rows(student, load_run_corpus(first)).column_names
    beside = load_run_corpus(first, unrated)
    assert training_rows(student, beside)["corpus"][:] == [""] * 4 + ["plain"] * 5
    assert "corpus" not in training_rows(teacher, beside).column_names
    with_rest = load_run_corpus(first, unrated, labelled_share=0.5)
    assert training_rows(student, with_rest)["corpus"][:] == [""] * 4 + ["plain"] * 5
    both = load_run_corpus([first, second], unrated)
    assert training_rows(student, both)["corpus"][:] == ["first"] * 4 + ["second"] * 3 + ["plain"] * 5


def test_more_hours_have_those_of_fewer(tmp_path, first):
    rows = {f"w{index},Nobody rated {index}.": 40 + index for index in range(20)}
    plain = write(tmp_path / "long", rows, "id,audio,transcript") | {"alias": "plain"}
    hour = 3600 * 16000 / 800  # utterances of 800 samples
    found = {}
    for number in (2.5, 7, 20):
        corpus = load_run_corpus(first, plain, unlabelled_hours=number / hour)
        found[number] = set(corpus["unlabelled"]["id"])
    assert [len(ids) for ids in found.values()] == [3, 7, 20] and found[2.5] < found[7] < found[20]
    with pytest.raises(ValueError, match="unlabelled_hours is 1, but there are only 0.000278 hours of unlabelled"):
        load_run_corpus(first, plain, unlabelled_hours=1)


def test_the_share_is_that_of_each_corpus(tmp_path, second, unrated):
    corpus = load_run_corpus([many(tmp_path, "many", 20), second], unrated, labelled_share=0.5)
    assert corpus["train"]["corpus"] == ["many"] * 10 + ["second"] * 2
    assert corpus["unlabelled"]["corpus"] == ["many"] * 10 + ["second"] + ["plain"] * 5
    assert corpus.report.corpora["second"].utterances == {"train": 2, "validation": 1, "test": 2}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("It's late.", "it s LATE"),
        ("\uff26ull width", "full width"),
        ("\u00abStra\u00dfe\u00bb", "strasse"),
        ("1,900 of them", "1 900 of them!"),
    ],
)
def test_sentences_are_compared_by_letters_and_digits(text, other):
    assert sentence_key(text) == sentence_key(other) != ""
    assert sentence_key("... !?") == ""


def test_the_strictest_licence():
    assert strictest(["cc0-1.0"]) == ["cc0-1.0"]
    assert strictest(["cc-by-4.0", "mit", "cc0-1.0"]) == ["cc-by-4.0", "mit"]
    assert strictest(["cc-by-sa-4.0", "odbl", "apache-2.0"]) == ["cc-by-sa-4.0", "odbl"]
    assert strictest(["cc-by-nc-4.0", "odbl"]) == ["cc-by-nc-4.0"]
    assert strictest(["cc-by-nc-nd-4.0", "other", "mit"]) == ["other"]
    check_licence("odbl")
    with pytest.raises(ValueError, match="licence is 'cc-by-4', but must be one of .* Did you mean 'cc-by-4.0'"):
        check_licence("cc-by-4")


def test_the_spread_of_ratings_is_kept_where_only_one_corpus_has_it(first, second, monkeypatch):
    """As `annotators=True` gives it: NaN for the utterances of the other."""
    load = sources.load_corpus

    def with_spread(**arguments):
        corpus = load(**arguments)
        if "second" in arguments["data_dir"]:
            for split, rows in corpus.items():
                spread = pyarrow.array([0.5] * len(rows), pyarrow.float32())
                corpus[split] = rows.add_column("valence_std", spread).add_column("raters", [3] * len(rows))
        return corpus

    monkeypatch.setattr(sources, "load_corpus", with_spread)
    corpus = load_run_corpus([first, second])
    np.testing.assert_array_equal(corpus["train"]["valence_std"], [np.nan] * 4 + [0.5] * 3)
    assert "raters" not in corpus["train"].column_names
