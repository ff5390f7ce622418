"""CREMA-D from small copies in the published layout, with generated sound, and from a real one where there is one."""

import csv
import io
import math
import runpy
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from cmkd.corpora import crema_d, load_corpus
from cmkd.corpora.crema_d import ACTORS, FURTHER_FEATURES, TEST_ACTORS, VALIDATION_ACTORS, split_of
from cmkd.corpora.report import CorpusError, CorpusReport
from cmkd.corpora.schema import FEATURES
from cmkd.corpora.sources import RunReport, Source, copies_of, load_run_corpus, speaker_keys
from cmkd.features.audio import read_audio
from cmkd.runs.cross_fitting import folds_of
from cmkd.scoring.confidence import ccc_interval

CLIPS = ("1002_DFA_ANG_XX", "1004_IEO_HAP_LO", "1001_DFA_SAD_HI", "1003_TIE_NEU_XX")
COLUMNS = ("", *"ADFHNS", "fileName", "numResponses", *crema_d.INTENSITIES.values())
COUNTS = {"A": 5, "D": 1, "F": 0, "H": 0, "N": 2, "S": 1}
LEVELS = {"A": 80.5, "D": 40, "F": -1, "H": -1, "N": 60, "S": 30}

# Russell and Mehrabian 1977: pleasure, arousal and dominance of angry, disgusted, fearful, happy and sad
PUBLISHED = {
    "A": (-0.51, 0.59, 0.25),
    "D": (-0.60, 0.35, 0.11),
    "F": (-0.64, 0.60, -0.43),
    "H": (0.81, 0.51, 0.46),
    "N": (0.0, 0.0, 0.0),
    "S": (-0.63, -0.27, -0.33),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def votes_of(clip, number=1, counts=COUNTS, levels=LEVELS, total=None):
    """The three rows of a clip: as it was heard, as it was seen, and both; the last two would give other labels."""
    others = dict.fromkeys("ADFHNS", 0) | {"H": 9}
    rows = []
    for kind, votes in ((1, counts), (2, others), (3, others)):
        levels_here = levels if kind == 1 else dict.fromkeys("ADFHNS", 100)
        answers = sum(votes.values()) if total is None or kind > 1 else total
        rows.append([f"{kind}{number:05}", *votes.values(), clip, answers, *levels_here.values()])
    return rows


def written(header, rows):
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows([header, *rows])
    return file.getvalue()


class Copy:
    """A copy with four clips of four actors."""

    def __init__(self, root):
        self.root = root
        self.votes = [row for number, clip in enumerate(CLIPS, start=1) for row in votes_of(clip, number)]
        self.actors = [
            [1001, 51, "Male", "Caucasian", "Not Hispanic"],
            [1002, 21, "Female", "Asian", "Hispanic"],
            [1003, 35, "Female", "African American", "Not Hispanic"],
            [1004, 42, "Male", "Unknown", "Not Hispanic"],
        ]
        self.number_of_sounds = 0
        root.mkdir()
        for clip in CLIPS:
            self.sound(f"AudioWAV/{clip}.wav")
        self.write()

    def sound(self, name):
        """Writes a sound of its own: 0.1 s."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.random.default_rng(self.number_of_sounds).uniform(-0.5, 0.5, 1600), 16000)
        self.number_of_sounds += 1

    def write(self, votes="processedResults/tabulatedVotes.csv"):
        path = self.root / votes
        path.parent.mkdir(exist_ok=True)
        path.write_text(written(COLUMNS, self.votes))
        header = ["ActorID", "Age", "Sex", "Race", "Ethnicity"]
        (self.root / "VideoDemographics.csv").write_text(written(header, self.actors))

    def load(self, **config):
        self.write()
        return load_corpus("crema-d", self.root, **config)

    def rows(self, **config):
        return {row["id"]: row for split in self.load(**config).values() for row in split}

    def problems(self):
        with pytest.raises(CorpusError) as caught:
            self.load()
        return [(problem.row, problem.reason) for problem in caught.value.report.problems]


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "CREMA-D")


# The split of the actors


def test_actors_are_split_once_for_all():
    assert len(VALIDATION_ACTORS) == len(TEST_ACTORS) == 15 and len(ACTORS) == 91
    splits = [split_of(actor) for actor in ACTORS]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [61, 15, 15]
    assert set(ACTORS) >= VALIDATION_ACTORS | TEST_ACTORS and not VALIDATION_ACTORS & TEST_ACTORS


def test_the_splits_are_balanced_by_sex(shared_dir):
    with (shared_dir / "data/crema-d/VideoDemographics.csv").open() as file:
        women = {row["ActorID"] for row in csv.DictReader(file) if row["Sex"] == "Female"}
    assert len(women) == 43
    assert [len(women & actors) for actors in (VALIDATION_ACTORS, TEST_ACTORS)] == [7, 7]


# Labels


def as_single_votes(counts, levels):
    """Each vote as a point of its own, in the order valence, activation, dominance of the published table."""
    return np.array(
        [np.array(PUBLISHED[key]) * levels[key] / 100 for key, count in counts.items() for _ in range(count)]
    )


@pytest.mark.parametrize(
    ("counts", "levels"),
    [
        (COUNTS, LEVELS),
        (
            {"A": 0, "D": 0, "F": 3, "H": 4, "N": 0, "S": 3},
            {"A": -1, "D": -1, "F": 12.5, "H": 100, "N": -1, "S": 66.25},
        ),
        ({"A": 0, "D": 0, "F": 0, "H": 10, "N": 0, "S": 0}, {"A": -1, "D": -1, "F": -1, "H": 100, "N": -1, "S": -1}),
    ],
    ids=["anger", "disagreement", "agreement"],
)
def test_a_label_is_the_mean_of_the_votes_and_its_spread_their_deviation(copy, counts, levels):
    copy.votes[:3] = votes_of(CLIPS[0], counts=counts, levels=levels)
    row = copy.rows()[CLIPS[0]]
    points = as_single_votes(counts, levels)
    for number, dimension in enumerate(("valence", "activation", "dominance")):
        assert row[dimension] == pytest.approx(points[:, number].mean(), abs=1e-6)
        assert row[f"{dimension}_std"] == pytest.approx(points[:, number].std(ddof=1), abs=1e-6)
    assert row["num_ratings"] == len(points)


def test_one_voice_with_all_votes_and_full_intensity_is_the_published_point(copy):
    happy = {"A": 0, "D": 0, "F": 0, "H": 1, "N": 0, "S": 0}
    copy.votes[:3] = votes_of(CLIPS[0], counts=happy, levels=dict.fromkeys("ADFHNS", -1) | {"H": 100})
    row = copy.rows()[CLIPS[0]]
    assert [row[key] for key in ("activation", "valence", "dominance")] == pytest.approx([0.51, 0.81, 0.46])
    assert math.isnan(row["valence_std"])  # a single vote has no spread


def test_the_labels_say_that_they_are_derived(copy):
    report = copy.load().report
    assert report.label_scale == (-1, 1) and report.terms == ""
    assert "derived from votes" in report.notes[0] and "Open Database License" in report.notes[1]


# Copies in one run


TRAINED = sorted(set(ACTORS) - set(VALIDATION_ACTORS) - set(TEST_ACTORS))[:6]


@pytest.fixture
def copies(copy, tmp_path):
    """CREMA-D as it was recorded, and as it sounds elsewhere, with 3 to 8 clips of six actors in train."""
    numbers = iter(range(10, 100))
    copy.actors = [[int(actor), 30, "Female", "Unknown", "Not Hispanic"] for actor in ("1001", "1004", *TRAINED)]
    held_out = [clip for clip in CLIPS if clip[:4] in ("1001", "1004")]
    copy.votes = [row for number, clip in enumerate(held_out, start=1) for row in votes_of(clip, number)]
    for path in (copy.root / "AudioWAV").iterdir():
        if path.stem not in held_out:
            path.unlink()
    for place, actor in enumerate(TRAINED):
        for sentence in ("DFA", "IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL")[: 3 + place]:
            number = next(numbers)
            counts = COUNTS | {"A": number % 5, "H": number % 3}
            copy.votes += votes_of(f"{actor}_{sentence}_ANG_XX", number, counts, dict.fromkeys("ADFHNS", 50))
            copy.sound(f"AudioWAV/{actor}_{sentence}_ANG_XX.wav")
    copy.write()
    other = tmp_path / "disturbed"
    shutil.copytree(copy.root, other)
    for path in (other / "AudioWAV").iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples / 3, rate)
    (other / "AudioWAV" / f"{TRAINED[5]}_IWL_ANG_XX.wav").unlink()  # a clip that one of them lacks
    given = {"name": "crema-d", "on_error": "skip"}
    return [given | {"data_dir": str(copy.root)}, given | {"data_dir": str(other), "alias": "disturbed"}]


def test_nobody_is_in_two_folds_by_another_name(copies):
    corpus = load_run_corpus(copies)
    folds = folds_of(corpus, 3)
    assert len(corpus["train"]) == 2 * (3 + 4 + 5 + 6 + 7 + 8) - 1
    answered = []
    for fold in folds:
        learned, held = (
            {speaker.partition("/")[2] for speaker in fold[split]["speaker"]} for split in ("train", "test")
        )
        assert not learned & held and learned | held == {str(actor) for actor in TRAINED}
        answered += fold["test"]["id"]
    assert sorted(answered) == sorted(corpus["train"]["id"])  # under the ids that they always had
    assert {name.partition("/")[0] for name in answered} == {"crema-d", "disturbed"}
    with pytest.raises(ValueError, match="cross_fitting is 7, but the training split has 6 speakers"):
        folds_of(corpus, 7)


def test_a_clip_keeps_its_label_in_all_copies_or_in_none(copies):
    whole = load_run_corpus(copies)
    labelled = {}
    for share in (0.2, 0.5):
        corpus = load_run_corpus(copies, labelled_share=share)
        sides = [{tuple(name.split("/")) for name in corpus[split]["id"]} for split in ("train", "unlabelled")]
        kept, rest = ({clip for _, clip in side} for side in sides)
        assert not kept & rest and len(kept) == math.ceil(share * 33)
        assert sides[0] | sides[1] == {tuple(name.split("/")) for name in whole["train"]["id"]}
        labelled[share] = kept
    assert labelled[0.2] < labelled[0.5]


def test_what_somebody_says_in_two_copies_counts_as_one_speaker(copies):
    """The interval over both copies is as wide as that of the same answers under one corpus and one name."""
    corpus = load_run_corpus(copies)
    rows = corpus["train"]
    assert corpus.report.speakers["train"] == len(TRAINED)
    assert {name: report.speakers["train"] for name, report in corpus.report.corpora.items()} == {
        "crema-d": len(TRAINED), "disturbed": len(TRAINED)
    }  # fmt: skip
    rng = np.random.default_rng(0)
    labels = rng.random((len(rows), 3))
    predictions = labels + 0.3 * rng.standard_normal(labels.shape)
    actors = [name.partition("/")[2][:4] for name in rows["id"]]
    assert ccc_interval(labels, predictions, rows["speaker"]) == ccc_interval(labels, predictions, actors)


def test_an_utterance_of_unknown_speaker_is_with_its_copy():
    report = RunReport("a + b", "several", (0, 1), {}, corpora={
        alias: CorpusReport("msp-podcast", "1.8", (1, 7), {}) for alias in ("a", "b")
    })  # fmt: skip
    copies = copies_of(report)
    assert copies == {"a": "a", "b": "a"}
    rows = datasets.Dataset.from_dict({"id": ["a/1", "b/1", "b/2", "c/1"], "speaker": ["", "", "a/x", ""]})
    keys = speaker_keys(rows, copies)
    assert keys[0] == keys[1] != "" and keys[2:] == ["a/x", ""]
    own = {alias: CorpusReport("manifest", "", (1, 7), {}) for alias in ("a", "b")}
    assert copies_of(RunReport("a + b", "several", (0, 1), {}, corpora=own)) == {}


def test_copies_that_are_split_otherwise_are_refused(copies, monkeypatch):
    load = Source.load

    def moved(self, **settings):
        corpus = load(self, **settings)
        if self.alias == "disturbed":
            corpus["validation"], corpus["test"] = corpus["test"], corpus["validation"]
        return corpus

    monkeypatch.setattr(Source, "load", moved)
    with pytest.raises(
        ValueError, match="'disturbed/1001_.*' is in the split validation, and 'crema-d/1001_.*' in test: .* are copies"
    ):
        load_run_corpus(copies)


# Rows


def test_rows(copy):
    corpus = copy.load()
    assert {split: rows["id"][:] for split, rows in corpus.items()} == {
        "train": ["1002_DFA_ANG_XX", "1003_TIE_NEU_XX"],
        "validation": ["1004_IEO_HAP_LO"],
        "test": ["1001_DFA_SAD_HI"],
    }
    assert all(rows.features == {**FEATURES, **FURTHER_FEATURES} for rows in corpus.values())
    row = corpus["train"][0]
    assert {key: row[key] for key in ("speaker", "gender", "age", "race", "ethnicity", "transcript")} == {
        "speaker": "1002",
        "gender": "female",
        "age": 21,
        "race": "Asian",
        "ethnicity": "Hispanic",
        "transcript": "",
    }
    assert row["audio"]["path"] == str(copy.root / "AudioWAV/1002_DFA_ANG_XX.wav")
    assert row["duration"] == pytest.approx(0.1)
    assert list(copy.load(streaming=True)["train"].features) == list(corpus["train"].features)
    assert next(iter(copy.load(streaming=True)["train"])) == row


def test_sentences_come_from_the_readme_or_the_file_that_is_named(copy, tmp_path):
    (copy.root / "README.md").write_text("# Names\n- Take this with you (DFA).\n* It's noon (IEO)\n- Anger (ANG)\n")
    rows = copy.rows()
    assert [rows[clip]["transcript"] for clip in CLIPS] == ["Take this with you", "It's noon", "Take this with you", ""]
    assert "sentences that the list does not have: TIE" in copy.load().report.notes
    own = tmp_path / "own.txt"
    own.write_text("What happened (TIE)\n")
    rows = copy.rows(sentences=own)
    assert [rows[clip]["transcript"] for clip in CLIPS] == ["", "", "", "What happened"]


def test_sentences_that_cannot_be_used_are_refused(copy, tmp_path):
    own = tmp_path / "own.txt"
    with pytest.raises(FileNotFoundError, match=r"sentences is .*own\.txt', but there is no such file"):
        copy.load(sentences=own)
    own.write_text("What happened\n")
    with pytest.raises(ValueError, match='none of its 1 lines is like "Words of the clip'):
        copy.load(sentences=own)
    own.write_text("What happened (TIE)\nWhat was it (TIE)\n")
    with pytest.raises(
        ValueError, match=r"own\.txt:2 says 'What was it' for TIE, but a line before it 'What happened'"
    ):
        copy.load(sentences=own)


def test_other_audio_folders(copy):
    (copy.root / "AudioWAV").rename(copy.root / "AudioOpus")
    assert copy.rows()[CLIPS[0]]["audio"]["path"].endswith("AudioOpus/1002_DFA_ANG_XX.wav")
    (copy.root / "AudioMP3").mkdir()
    with pytest.raises(ValueError, match="has AudioMP3, AudioOpus: say with audio_dir"):
        copy.load()
    assert len(copy.rows(audio_dir="AudioOpus")) == 4
    with pytest.raises(FileNotFoundError, match=r"AudioMP3' has no sound files"):
        copy.load(audio_dir="AudioMP3")
    for wrong in ("Audio", "../CREMA-D"):
        with pytest.raises(FileNotFoundError, match=f"audio_dir is '{wrong}', but"):
            copy.load(audio_dir=wrong)


def test_votes_beside_the_folder_of_results(copy):
    (copy.root / "processedResults/tabulatedVotes.csv").unlink()
    with pytest.raises(FileNotFoundError, match="'processedResults/tabulatedVotes.csv' or 'tabulatedVotes.csv'"):
        load_corpus("crema-d", copy.root)
    copy.write(votes="tabulatedVotes.csv")
    (copy.root / "processedResults/tabulatedVotes.csv").unlink(missing_ok=True)
    assert len(load_corpus("crema-d", copy.root)["train"]) == 2


def test_the_clip_with_the_odd_name_gets_its_votes(copy):
    (copy.root / "AudioWAV" / f"{CLIPS[0]}.wav").rename(copy.root / "AudioWAV/1002_DFA_ANG_X.wav")
    assert copy.rows()["1002_DFA_ANG_XX"]["audio"]["path"].endswith("AudioWAV/1002_DFA_ANG_X.wav")
    assert "clips whose level X is read as XX: 1, 1002_DFA_ANG_X.wav" in copy.load().report.notes


# What is wrong with a copy


def remove_votes(copy):
    del copy.votes[:3]


def keep_only_the_faces(copy):
    del copy.votes[0]


def add_a_clip_without_votes(copy):
    copy.sound("AudioWAV/1003_DFA_SAD_XX.wav")


def add_a_clip_of_another_name(copy):
    copy.sound("AudioWAV/1003_DFA_SURPRISE.wav")


def add_a_clip_of_another_actor(copy):
    copy.sound("AudioWAV/1099_DFA_SAD_XX.wav")


def add_a_clip_twice(copy):
    copy.sound(f"AudioWAV/{CLIPS[0]}.flac")


def remove_a_clip(copy):
    (copy.root / f"AudioWAV/{CLIPS[0]}.wav").unlink()


def miscount(copy):
    copy.votes[:3] = votes_of(CLIPS[0], total=8)


def vote_by_halves(copy):
    copy.votes[:3] = votes_of(CLIPS[0], counts=COUNTS | {"A": 4.5}, total=9)


def no_votes_at_all(copy):
    copy.votes[:3] = votes_of(CLIPS[0], counts=dict.fromkeys("ADFHNS", 0))


def too_intense(copy):
    copy.votes[:3] = votes_of(CLIPS[0], levels=LEVELS | {"S": 101})


def votes_without_intensity(copy):
    copy.votes[:3] = votes_of(CLIPS[0], levels=LEVELS | {"A": -1})


def votes_of_another_name(copy):
    copy.votes += votes_of("1002_XYZ_ANG_XX", number=9)


def votes_twice(copy):
    copy.votes += votes_of("1002_DFA_ANG_X", number=9)


def lose_an_actor(copy):
    del copy.actors[1]


def an_actor_twice(copy):
    copy.actors.append(copy.actors[0])


def an_actor_of_unknown_number(copy):
    copy.actors.append([1092, 30, "Male", "Unknown", "Unknown"])


def an_age_in_words(copy):
    copy.actors[1][1] = "twenty"


VOTES_1 = "tabulatedVotes.csv:2"


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (remove_votes, [("AudioWAV/1002_DFA_ANG_XX.wav", "no votes")]),
        (keep_only_the_faces, [("AudioWAV/1002_DFA_ANG_XX.wav", "no votes")]),
        (add_a_clip_without_votes, [("AudioWAV/1003_DFA_SAD_XX.wav", "no votes")]),
        (add_a_clip_of_another_name, [("AudioWAV/1003_DFA_SURPRISE.wav", "not the name of a clip")]),
        (add_a_clip_of_another_actor, [("AudioWAV/1099_DFA_SAD_XX.wav", "unknown actor")]),
        (add_a_clip_twice, [("AudioWAV/1002_DFA_ANG_XX.wav", "two files of this name")]),
        (remove_a_clip, [(VOTES_1, "missing file")]),
        (miscount, [(VOTES_1, "votes do not add up")]),
        (vote_by_halves, [(VOTES_1, "not a number")]),
        (no_votes_at_all, [(VOTES_1, "votes do not add up")]),
        (too_intense, [(VOTES_1, "outside the scale")]),
        (votes_without_intensity, [(VOTES_1, "outside the scale")]),
        (votes_of_another_name, [("tabulatedVotes.csv:14", "not the name of a clip")]),
        (votes_twice, [("tabulatedVotes.csv:14", "duplicate id")]),
        (lose_an_actor, [(VOTES_1, "unknown actor")]),
        (an_actor_twice, [("VideoDemographics.csv:6", "duplicate actor")]),
        (an_actor_of_unknown_number, [("VideoDemographics.csv:6", "unknown actor")]),
        (an_age_in_words, [("VideoDemographics.csv:3", "not a number")]),
    ],
)
def test_problems_are_named_and_can_be_skipped(copy, break_it, expected):
    break_it(copy)
    problems = copy.problems()
    assert problems[: len(expected)] == expected
    rows = copy.rows(on_error="skip")
    assert rows and set(rows) <= set(CLIPS)
    lost = set(CLIPS) - set(rows)
    assert lost <= {CLIPS[0]}


def test_what_is_no_copy_is_refused(copy, tmp_path):
    with pytest.raises(ValueError, match="data_dir is None: pass the folder of a copy of CREMA-D"):
        load_corpus("crema-d")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_corpus("crema-d", tmp_path / "elsewhere")
    (copy.root / "VideoDemographics.csv").write_text("ActorID,Age\n1001,20\n")
    with pytest.raises(CorpusError, match="no 'Sex', 'Race', 'Ethnicity' among 'ActorID', 'Age'"):
        load_corpus("crema-d", copy.root)
    (copy.root / "VideoDemographics.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no file 'VideoDemographics\.csv'"):
        load_corpus("crema-d", copy.root)


def test_pointers_of_git_lfs_are_told_from_what_they_point_at(copy):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    sound = copy.root / f"AudioWAV/{min(CLIPS)}.wav"
    content = sound.read_bytes()
    sound.write_text(pointer)
    with pytest.raises(
        ValueError, match=r"1001_DFA_SAD_HI\.wav' only says where Git LFS has the clip: call git lfs pull"
    ):
        copy.load()
    sound.write_bytes(content)
    (copy.root / "processedResults/tabulatedVotes.csv").write_text(pointer)
    with pytest.raises(ValueError, match=r"tabulatedVotes\.csv' only says where Git LFS has the file"):
        load_corpus("crema-d", copy.root)


# The real corpus


def test_the_real_votes_give_labels_for_every_clip(shared_dir):
    """Without reading 7,442 files: the labels against the votes that the corpus itself calls the majority."""
    folder = shared_dir / "data/crema-d"
    report = crema_d.CorpusReport(name="crema-d", release="", label_scale=(-1, 1), config={})
    votes = crema_d._read_votes((folder / "processedResults/tabulatedVotes.csv").read_bytes(), report)
    sounds = crema_d._find_sounds(folder / "AudioOpus", folder, report)
    assert report.problems == [] and set(votes) == set(sounds) and len(votes) == 7442
    assert report.notes == ["clips whose level X is read as XX: 1, 1040_ITH_SAD_X.opus"]
    with (folder / "processedResults/summaryTable.csv").open() as file:
        majority = {row["FileName"]: row["VoiceVote"] for row in csv.DictReader(file)}
    labels = {
        key: np.array(
            [
                [votes[clip].label(dimension) for dimension in ("valence", "activation", "dominance")]
                for clip, vote in majority.items()
                if vote == key and clip in votes
            ]
        ).mean(axis=0)
        for key in "ADFHNS"
    }
    assert max(labels, key=lambda key: labels[key][0]) == "H"  # valence
    assert sorted(labels, key=lambda key: labels[key][1])[0] == "S"  # activation
    assert max(labels, key=lambda key: labels[key][1]) == "A"
    assert min(labels, key=lambda key: labels[key][2]) in "FS"  # dominance


# The copy that the student of recipes/open is trained on, too


def test_a_disturbed_copy_has_the_same_labels_and_a_sound_of_its_own_that_its_name_decides(copy, tmp_path):
    pytest.importorskip("pyroomacoustics")
    disturb = runpy.run_path(str(Path(__file__).parent.parent / "recipes/open/disturb.py"))["main"]
    disturb(copy.root, tmp_path / "disturbed")
    first = {path.name: path.read_bytes() for path in (tmp_path / "disturbed/AudioFLAC").iterdir()}
    assert set(first) == {f"{clip}.flac" for clip in CLIPS}
    clips = {split: list(rows) for split, rows in copy.load().items()}
    disturbed = {split: list(rows) for split, rows in load_corpus("crema-d", tmp_path / "disturbed").items()}
    for split, rows in clips.items():
        for row, other in zip(rows, disturbed[split], strict=True):
            same = ("id", "speaker", "transcript", "activation", "valence", "dominance", "num_ratings")
            assert {name: row[name] for name in same} == {name: other[name] for name in same}
            ours, theirs = (read_audio(one["audio"], 16_000) for one in (row, other))
            assert len(theirs) >= len(ours) and np.abs(theirs).max() <= 1
    name = sorted(first)[0]
    (tmp_path / "disturbed/AudioFLAC" / name).unlink()
    (tmp_path / "disturbed/AudioFLAC" / sorted(first)[1]).write_bytes(b"is not written again")
    disturb(copy.root, tmp_path / "disturbed")
    assert (tmp_path / "disturbed/AudioFLAC" / name).read_bytes() == first[name]
    assert (tmp_path / "disturbed/AudioFLAC" / sorted(first)[1]).read_bytes() == b"is not written again"


def test_what_a_disturbed_clip_is():
    """Over many draws: as long or longer as often as said, seldom as it was, never beyond full scale."""
    functions = runpy.run_path(str(Path(__file__).parent.parent / "recipes/open/disturb.py"))
    wave = np.sin(np.arange(16_000) / 20).astype(np.float32) / 4
    voices = [np.roll(wave, 99 * number) for number in range(8)]
    room = functions["draw_rooms"](np.random.default_rng(0))[0]
    heard = [functions["disturbed"](wave, np.random.default_rng(seed), [room], voices) for seed in range(200)]
    longer = [len(sound) - len(wave) for sound in heard]
    assert min(longer) == 0 and max(longer) <= 2 * 24_000
    assert np.mean([length > 0 for length in longer]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([len(sound) == len(wave) and np.allclose(sound, wave, atol=1e-4) for sound in heard]) < 0.1
    levels = np.array([20 * np.log10(np.abs(sound).max() / 0.25) for sound in heard])
    assert levels.max() <= 12.1 and levels.min() < -12 and max(np.abs(sound).max() for sound in heard) <= 1
