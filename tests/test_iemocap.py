"""IEMOCAP from copies in the real layout, with generated sound and one quirk per test."""

import datasets
import numpy as np
import pandas
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from cmkd.corpora import iemocap, load_corpus
from cmkd.corpora.iemocap import SPEAKERS, parse_labels, parse_transcriptions, speaker_splits, without_tags
from cmkd.corpora.report import CorpusError
from cmkd.corpora.schema import FEATURES

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def block(turn, values="2.5000, 3.5000, 4.5000", ratings=("val 3; act 3; dom  4;", "val 2; act 4; dom  5;")):
    """The lines about a turn in a label file."""
    lines = [f"[6.2901 - 8.2357]\t{turn}\tneu\t[{values}]", "C-E2:\tNeutral;\t()", "C-F1:\tNeutral; Other;\t(calm)"]
    return "\n".join([*lines, *(f"A-E{n}:\t{rating}\t()" for n, rating in enumerate(ratings, start=1))]) + "\n\n"


def dialogue(session):
    """The one dialogue of a session, in which the women of the odd sessions wear the markers."""
    return f"Ses0{session}{'MF'[session % 2]}_impro01"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


class Copy:
    """A copy of the release: five sessions of one dialogue, in which each of the two says one thing."""

    def __init__(self, root):
        self.root = root
        self.number_of_sounds = 0
        for session in range(1, 6):
            turns = [f"{dialogue(session)}_F000", f"{dialogue(session)}_M000"]
            self.write(session, "EmoEvaluation", HEADER + "".join(map(block, turns)))
            lines = [f"{turn} [006.2901-008.2357]: Session {session}, {turn[-4]}.\n" for turn in turns]
            self.write(session, "transcriptions", "".join(lines))
            for turn in turns:
                self.sound(turn)
            folder = root / f"Session{session}/dialog/EmoEvaluation"
            for other in ("Attribute", "Categorical", "Self-evaluation"):
                (folder / other).mkdir()
                (folder / other / f"{dialogue(session)}_e2_cat.txt").write_text("Ses01F_impro01_F000 :Neutral; ()\n")

    def path(self, session, kind, name=None):
        return self.root / f"Session{session}/dialog/{kind}/{name or dialogue(session)}.txt"

    def write(self, session, kind, content, name=None):
        path = self.path(session, kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def add(self, session, kind, content):
        self.write(session, kind, self.path(session, kind).read_bytes() + content.encode())

    def sound_path(self, turn):
        return self.root / f"Session{turn[4]}/sentences/wav/{turn.rpartition('_')[0]}/{turn}.wav"

    def sound(self, turn, path=None):
        """Writes a sound of 0.1 s that no other file has."""
        path = path or self.sound_path(turn)
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(self.number_of_sounds).uniform(-0.5, 0.5, 1600)
        soundfile.write(path, samples, 16000)
        self.number_of_sounds += 1

    def add_turn(self, turn, values="2.5000, 3.5000, 4.5000", **options):
        """A further turn of a session's dialogue, with sound and words."""
        self.add(int(turn[4]), "EmoEvaluation", block(turn, values, **options))
        self.add(int(turn[4]), "transcriptions", f"{turn} [009.0000-010.0000]: More.\n")
        self.sound(turn)

    def load(self, **config):
        return load_corpus("iemocap", self.root, **config)

    def rows(self, **config):
        """All rows by id."""
        return {row["id"]: row for split in self.load(**config).values() for row in split}

    def problems(self, **config):
        """The problems for which the copy is refused, as (row, reason)."""
        with pytest.raises(CorpusError) as caught:
            self.load(**config)
        return [(problem.row, problem.reason) for problem in caught.value.report.problems]


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "IEMOCAP_full_release")


def labels_file(session=1):
    return f"Session{session}/dialog/EmoEvaluation/{dialogue(session)}.txt"


def transcriptions_file(session=1):
    return f"Session{session}/dialog/transcriptions/{dialogue(session)}.txt"


# Rows


def test_rows(copy):
    corpus = copy.load()

    assert list(corpus) == ["train", "validation", "test"]
    assert all(split.features == FEATURES for split in corpus.values())
    assert corpus["test"].to_list() == [
        {
            "id": "Ses01F_impro01_F000",
            "audio": {"bytes": None, "path": str(copy.sound_path("Ses01F_impro01_F000"))},
            "transcript": "Session 1, F.",
            "activation": 3.5,
            "valence": 2.5,
            "dominance": 4.5,
            "speaker": "Ses01_F",
            "gender": "female",
            "split": "test",
            "duration": pytest.approx(0.1),
            "label_scale": [1.0, 5.0],
            "start": None,
            "end": None,
            "channel": None,
        },
        {
            "id": "Ses01F_impro01_M000",
            "audio": {"bytes": None, "path": str(copy.sound_path("Ses01F_impro01_M000"))},
            "transcript": "Session 1, M.",
            "activation": 3.5,
            "valence": 2.5,
            "dominance": 4.5,
            "speaker": "Ses01_M",
            "gender": "male",
            "split": "test",
            "duration": pytest.approx(0.1),
            "label_scale": [1.0, 5.0],
            "start": None,
            "end": None,
            "channel": None,
        },
    ]
    assert corpus["validation"]["id"][:] == ["Ses02M_impro01_F000", "Ses02M_impro01_M000"]
    assert len(corpus["train"]) == 6
    assert corpus.report.notes == []
    assert corpus.report.skipped == {}


def test_the_release_is_found_in_its_parent_too(copy, tmp_path):
    assert load_corpus("iemocap", tmp_path)["test"][0]["id"] == "Ses01F_impro01_F000"


def test_labels_come_in_the_order_of_the_file_which_is_valence_first(copy):
    copy.add_turn("Ses01F_impro01_F001", "1.0000, 3.0000, 5.0000")
    row = copy.rows()["Ses01F_impro01_F001"]
    assert (row["activation"], row["valence"], row["dominance"]) == (3, 1, 5)


def test_the_speaker_is_who_speaks_not_who_wears_the_markers(copy):
    rows = copy.rows()
    assert {id: (row["speaker"], row["gender"]) for id, row in rows.items() if row["speaker"][:5] in "Ses01 Ses02"} == {
        "Ses01F_impro01_F000": ("Ses01_F", "female"),
        "Ses01F_impro01_M000": ("Ses01_M", "male"),
        "Ses02M_impro01_F000": ("Ses02_F", "female"),
        "Ses02M_impro01_M000": ("Ses02_M", "male"),
    }


@pytest.mark.parametrize(
    ("turn", "dialogue", "speaker"),
    [
        ("Ses05M_script01_1b_F003", "Ses05M_script01_1b", "Ses05_F"),
        ("Ses05M_impro05b_M012", "Ses05M_impro05b", "Ses05_M"),
        ("Ses05F_impro01_F000_1", "Ses05F_impro01", "Ses05_F"),
        ("Ses05F_script03_2_M032XX", "Ses05F_script03_2", "Ses05_M"),
        ("Ses05F_impro06_MXX0", "Ses05F_impro06", "Ses05_M"),
    ],
)
def test_odd_names_of_turns(copy, turn, dialogue, speaker):
    copy.write(5, "EmoEvaluation", HEADER + block(turn), name=dialogue)
    copy.write(5, "transcriptions", f"{turn} [006.2901-008.2357]: Odd.\n", name=dialogue)
    copy.sound(turn, copy.root / f"Session5/sentences/wav/{dialogue}/{turn}.wav")
    row = copy.rows()[turn]
    assert (row["speaker"], row["transcript"]) == (speaker, "Odd.")
    assert row["audio"]["path"].endswith(f"Session5/sentences/wav/{dialogue}/{turn}.wav")


# Labels beyond the scale


def test_labels_half_a_step_beyond_the_scale_stay_as_published_and_are_noted(copy):
    copy.add_turn("Ses01F_impro01_F001", "5.5000, 3.0000, 0.5000")
    corpus = copy.load()
    row = {row["id"]: row for row in corpus["test"]}["Ses01F_impro01_F001"]
    assert (row["activation"], row["valence"], row["dominance"]) == (3, 5.5, 0.5)
    assert row["label_scale"] == [1, 5]
    assert corpus.report.notes[0] == (
        f"labels a little beyond the scale of 1 to 5, kept as published: 2, the first {labels_file()}:15 (valence 5.5)"
    )


def test_labels_beyond_the_scale_may_be_clipped(copy):
    copy.add_turn("Ses01F_impro01_F001", "5.5000, 3.0000, 0.5000")
    corpus = copy.load(beyond_scale="clip")
    row = {row["id"]: row for row in corpus["test"]}["Ses01F_impro01_F001"]
    assert (row["activation"], row["valence"], row["dominance"]) == (3, 5, 1)
    assert "labels a little beyond the scale of 1 to 5, set to the end of the scale: 2, " in corpus.report.notes[0]


def test_labels_beyond_the_scale_may_be_refused(copy):
    copy.add_turn("Ses01F_impro01_F001", "5.5000, 3.0000, 3.0000")
    assert copy.problems(beyond_scale="refuse") == [(f"{labels_file()}:15", "outside the scale")]
    assert copy.load(beyond_scale="refuse", on_error="skip").report.skipped == {"outside the scale": 1}


@pytest.mark.parametrize("beyond_scale", iemocap.BEYOND_SCALE)
@pytest.mark.parametrize("label", ["5.6", "0.4", "25", "-1", "9" * 400])
def test_labels_far_beyond_the_scale_are_problems_whatever_the_setting(copy, beyond_scale, label):
    copy.add_turn("Ses01F_impro01_F001", f"3, {label}, 3")
    assert copy.problems(beyond_scale=beyond_scale) == [(f"{labels_file()}:15", "outside the scale")]


# Folds


def sessions_by_split(fold):
    splits = speaker_splits("leave-one-session-out", fold)
    return {split: [int(speaker[4]) for speaker in SPEAKERS if splits[speaker] == split] for split in splits.values()}


@pytest.mark.parametrize(
    ("fold", "train", "validation", "test"),
    [
        (1, [3, 3, 4, 4, 5, 5], [2, 2], [1, 1]),
        (2, [1, 1, 4, 4, 5, 5], [3, 3], [2, 2]),
        (3, [1, 1, 2, 2, 5, 5], [4, 4], [3, 3]),
        (4, [1, 1, 2, 2, 3, 3], [5, 5], [4, 4]),
        (5, [2, 2, 3, 3, 4, 4], [1, 1], [5, 5]),
    ],
)
def test_folds_of_sessions(fold, train, validation, test):
    assert sessions_by_split(fold) == {"train": train, "validation": validation, "test": test}


@pytest.mark.parametrize(
    ("fold", "test", "validation"), [(1, "Ses01_F", "Ses01_M"), (4, "Ses02_M", "Ses02_F"), (10, "Ses05_M", "Ses05_F")]
)
def test_folds_of_speakers(copy, fold, test, validation):
    corpus = copy.load(protocol="leave-one-speaker-out", fold=fold)
    speakers = {split: set(corpus[split]["speaker"]) for split in corpus}
    assert speakers["test"] == {test} and speakers["validation"] == {validation}
    assert speakers["train"] == {speaker for speaker in SPEAKERS if speaker[:5] != test[:5]}


@pytest.mark.parametrize("protocol", iemocap.NUM_FOLDS)
def test_every_speaker_is_tested_once(protocol):
    folds = [speaker_splits(protocol, fold) for fold in range(1, iemocap.NUM_FOLDS[protocol] + 1)]
    for speaker in SPEAKERS:
        assert sorted(fold[speaker] for fold in folds).count("test") == 1
        assert sorted(fold[speaker] for fold in folds).count("validation") == 1


def test_the_fold_is_loaded(copy):
    assert copy.load(fold=5)["test"]["id"][:] == ["Ses05F_impro01_F000", "Ses05F_impro01_M000"]
    assert copy.load(fold=5)["validation"]["speaker"][:] == ["Ses01_F", "Ses01_M"]


# Transcripts


def test_lines_without_a_turn_are_counted(copy):
    copy.add(1, "transcriptions", "M: Hm.\n(pause)\nSes01F_impro01_F001 [LAUGHTER] Oh.\n")
    corpus = copy.load()
    assert corpus.report.notes == [
        f"transcription lines without a turn's name and times, not read: 3, the first {transcriptions_file()}:3"
    ]


def test_turns_without_their_counterpart_are_counted(copy):
    copy.add(1, "transcriptions", "Ses01F_impro01_F001 [009.0-010.0]: Nobody rated this.\n")
    copy.add(1, "EmoEvaluation", block("Ses01F_impro01_M001"))
    copy.sound("Ses01F_impro01_M001")
    copy.sound("Ses01F_impro01_M002")
    corpus = copy.load()
    assert corpus.report.notes == [
        "transcribed turns without labels, not read: 1, the first Ses01F_impro01_F001",
        f"labelled turns without a transcript in the release: 1, the first {labels_file()}:15",
        "sound files without labels, not read: 1, the first "
        "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M002.wav",
    ]
    assert {row["id"]: row["transcript"] for row in corpus["test"]}["Ses01F_impro01_M001"] == ""
    assert "Ses01F_impro01_F001" not in corpus["test"]["id"]


def test_of_a_turn_transcribed_twice_the_first_line_counts(copy):
    copy.add(1, "transcriptions", "Ses01F_impro01_F000 [006.2901-008.2357]: Something else.\n")
    corpus = copy.load()
    assert corpus["test"][0]["transcript"] == "Session 1, F."
    assert corpus.report.notes == [
        f"transcription lines of a turn that had one before, not read: 1, the first {transcriptions_file()}:3"
    ]


def test_tags_stay_unless_they_are_stripped(copy):
    text = "[LAUGHTER] Oh [BREATHING], well."
    copy.write(1, "transcriptions", f"Ses01F_impro01_F000 [006.2901-008.2357]: {text}\n")
    assert copy.load()["test"][0]["transcript"] == text
    assert copy.load(strip_tags=True)["test"][0]["transcript"] == "Oh, well."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Plain,  with two spaces.", "Plain,  with two spaces."),
        ("[LAUGHTER]", ""),
        ("[LAUGHTER] [BREATHING].", ""),
        ("Yes [LAUGHTER] no.", "Yes no."),
        ("Yes[LAUGHTER]no.", "Yes no."),
        ("Yes [LAUGHTER]!", "Yes!"),
        ("[LAUGHTER]. Yes.", "Yes."),
        ("Yes. [LAUGHTER]", "Yes."),
        ("An [open bracket", "An [open bracket"),
        ("...", "..."),
    ],
)
def test_without_tags(text, words):
    assert without_tags(text) == words


def write_sidecar(path, texts):
    columns = {"average_log_probability": -0.5, "no_speech_probability": 0.1, "duration": 0.1}
    table = pandas.DataFrame({"id": list(texts), "text": list(texts.values())})
    table.assign(**columns, model="some/asr", revision="main", settings="{}").to_parquet(path)


@pytest.mark.parametrize(("prefer", "first"), [("manual", "Session 1, F."), ("asr", "one")])
def test_transcripts_of_a_recogniser(copy, tmp_path, prefer, first):
    copy.write(1, "transcriptions", "Ses01F_impro01_F000 [006.2901-008.2357]: Session 1, F.\n")
    write_sidecar(tmp_path / "asr.parquet", {"Ses01F_impro01_F000": "one", "Ses01F_impro01_M000": "two"})
    test = copy.load(transcripts=tmp_path / "asr.parquet", prefer_transcripts=prefer)["test"]
    assert test["transcript"][:] == [first, "two"]


# Files as they lie on disks


def test_what_a_mac_leaves_behind_is_not_read(copy):
    hidden = b"\x00\x05\x16\x07 Mac OS X"
    copy.write(1, "EmoEvaluation", hidden, name="._Ses01F_impro01")
    copy.write(1, "transcriptions", hidden, name="._Ses01F_impro01")
    copy.sound_path("Ses01F_impro01_F000").with_name("._Ses01F_impro01_F000.wav").write_bytes(hidden)
    (copy.root / "Session1/sentences/wav/._Ses01F_impro01").write_bytes(hidden)
    (copy.root / "Session1/sentences/wav/.AppleDouble").mkdir()
    (copy.root / "Session1/sentences/wav/.AppleDouble/Ses01F_impro01_F000.wav").write_bytes(hidden)
    corpus = copy.load()
    assert sum(map(len, corpus.values())) == 10
    assert corpus.report.notes == []


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        ("caf\u00e9 \u201ehm\u201c".encode("cp1252"), "caf\u00e9 \u201ehm\u201c", "Windows-1252"),
        ("caf\u00e9 \x81".encode("latin-1"), "caf\u00e9 \x81", "Latin-1"),
    ],
)
def test_text_that_is_not_utf8(copy, content, text, encoding):
    copy.write(1, "transcriptions", b"Ses01F_impro01_F000 [006.2901-008.2357]: " + content + b"!\n")
    corpus = copy.load()
    assert corpus["test"][0]["transcript"] == text + "!"
    assert corpus.report.notes[0] == (
        f"text files that are not UTF-8, read as {encoding}: 1, the first {transcriptions_file()}"
    )


def test_byte_order_mark_and_windows_line_ends(copy):
    for kind in ("EmoEvaluation", "transcriptions"):
        content = copy.path(1, kind).read_bytes()
        copy.write(1, kind, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    copy.add(1, "EmoEvaluation", block("Ses01F_impro01_F001", "9, 9, 9").replace("\n", "\r\n"))
    corpus = copy.load(on_error="skip")
    assert corpus["test"]["transcript"][:] == ["Session 1, F.", "Session 1, M."]
    assert {problem.row for problem in corpus.report.problems} == {f"{labels_file()}:15"}


def test_sounds_in_the_folder_of_another_dialogue_are_found(copy):
    copy.add(1, "EmoEvaluation", block("Ses01F_impro01_F001"))
    copy.sound("", copy.root / "Session1/sentences/wav/elsewhere/Ses01F_impro01_F001.wav")
    assert copy.rows()["Ses01F_impro01_F001"]["audio"]["path"].endswith("wav/elsewhere/Ses01F_impro01_F001.wav")


def test_a_second_sound_of_a_turn_is_noted(copy):
    copy.sound("", copy.root / "Session1/sentences/wav/zzz/Ses01F_impro01_F000.wav")
    corpus = copy.load()
    assert corpus["test"][0]["audio"]["path"] == str(copy.sound_path("Ses01F_impro01_F000"))
    assert corpus.report.notes == [
        "sound files of a turn that had one before, not read: 1, the first "
        "Session1/sentences/wav/zzz/Ses01F_impro01_F000.wav"
    ]


@pytest.mark.parametrize(
    ("damage", "row", "reason"),
    [
        (lambda copy: copy.path(1, "EmoEvaluation").write_text(HEADER), labels_file(), "no labels"),
        (lambda copy: copy.path(1, "EmoEvaluation").write_text(""), labels_file(), "no labels"),
        (lambda copy: copy.path(1, "transcriptions").unlink(), "Session1/dialog/transcriptions", "empty folder"),
        (lambda copy: (copy.root / "Session1").rename(copy.root / "Sitzung1"), "Session1", "missing folder"),
    ],
)
def test_an_incomplete_copy_is_refused_or_warned_of(copy, damage, row, reason):
    damage(copy)
    assert (row, reason) in copy.problems(fold=2)
    warnings = copy.load(fold=2, on_error="skip").report.warnings
    assert any(warning.startswith(f"{row}: {reason}") for warning in warnings)


def test_a_fold_whose_test_session_is_missing_is_refused_or_warned_of(copy):
    (copy.root / "Session1").rename(copy.root / "Sitzung1")
    corpus = copy.load(fold=1, on_error="skip")
    assert "no rows of test" in corpus.report.notes
    assert "Session1: missing folder" in corpus.report.warnings


def test_another_size_than_the_known_one_is_a_warning(copy):
    assert copy.load().report.warnings[:3] == [
        "train has 6 utterances, but IEMOCAP has 6,409: the copy is incomplete, or another, probably earlier, release",
        "validation has 2 utterances, but IEMOCAP has 1,811: the copy is incomplete, or another, probably earlier, "
        "release",
        "test has 2 utterances, but IEMOCAP has 1,819: the copy is incomplete, or another, probably earlier, release",
    ]
    by_speaker = copy.load(protocol="leave-one-speaker-out").report.warnings
    assert by_speaker[0].startswith("there are 10 utterances, but IEMOCAP has 10,039: ")


# Lines that are refused, or skipped


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        ("[1.0 - 2.0]\tSes01F_impro01_X001\tneu\t[3, 3, 3]", ["not the name of a turn"]),
        ("[1.0 - 2.0]\tSes06F_impro01_F001\tneu\t[3, 3, 3]", ["not the name of a turn"]),
        ("[1.0 - 2.0]\tSes01F_impro01\tneu\t[3, 3, 3]", ["not the name of a turn"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[3, 3]", ["not a line of labels"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu", ["not a line of labels"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\t[3, 3, 3]", ["not a line of labels"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[3, 3, 3", ["not a line of labels"]),
        ("1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[3, 3, 3]", ["not a line of labels"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[, 3, 3]", ["not a number"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[nan, 3, 1_0]", ["not a number", "not a number"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[2,5, 3,0, 3,0]", ["not a line of labels"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[3, 3, 3]", ["missing file"]),
        ("[1.0 - 2.0]\tSes01F_impro01_F000\tneu\t[3, 3, 3]", ["duplicate id", "audio used twice"]),
    ],
)
def test_a_bad_line_is_refused_or_skipped(copy, lines, reasons):
    copy.add(1, "EmoEvaluation", lines + "\n")
    assert copy.problems() == [(f"{labels_file()}:15", reason) for reason in reasons]
    corpus = copy.load(on_error="skip")
    assert sum(map(len, corpus.values())) == 10
    assert corpus.report.skipped == {reasons[0]: 1}


def test_a_refused_turn_is_not_called_unlabelled_too(copy):
    copy.add_turn("Ses01F_impro01_F001", "three, 3, 3")
    corpus = copy.load(on_error="skip")
    assert corpus.report.skipped == {"not a number": 1}
    (note,) = corpus.report.notes
    assert note.startswith("the table of all problems that were skipped: ")


def test_a_problem_says_what_stands_where(copy):
    copy.add(1, "EmoEvaluation", "[1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[three, 3, 3]\n")
    with pytest.raises(CorpusError) as caught:
        copy.load()
    assert [str(problem) for problem in caught.value.report.problems] == [
        f"{labels_file()}:15 (id 'Ses01F_impro01_F001'), valence 'three': not a number"
    ]


def test_another_order_of_labels_is_refused(copy):
    content = copy.path(1, "EmoEvaluation").read_text().replace("[V, A, D]", "[A, V, D]")
    copy.write(1, "EmoEvaluation", content)
    assert copy.problems() == [
        (f"{labels_file()}:3", "unknown order of labels"),
        (f"{labels_file()}:9", "unknown order of labels"),
    ]


def test_other_lines_of_label_files_are_noted(copy):
    copy.add(1, "EmoEvaluation", "A remark.\n")
    assert copy.load().report.notes == [
        f"lines of label files that are neither labels nor ratings: 1, the first {labels_file()}:15"
    ]


def test_a_broken_sound_is_refused_or_skipped(copy):
    copy.sound_path("Ses01F_impro01_F000").write_bytes(b"")
    assert copy.problems() == [(f"{labels_file()}:3", "empty audio")]
    assert copy.load(on_error="skip")["test"]["id"][:] == ["Ses01F_impro01_M000"]


# Annotators


def test_ratings_of_single_annotators(copy):
    copy.add_turn(
        "Ses01F_impro01_F001", ratings=["val 2; act 3; dom  5;", "val 3; act 4; dom   ;", "val 6; act 5; dom 1;"]
    )
    corpus = copy.load(annotators=True)
    row = corpus["test"].filter(lambda row: row["id"] == "Ses01F_impro01_F001")[0]
    assert row["annotators"] == ["E1", "E2", "E3"]
    assert row["activation_ratings"] == [3, 4, 5]
    np.testing.assert_equal(row["valence_ratings"], [2, 3, np.nan])
    np.testing.assert_equal(row["dominance_ratings"], [5, np.nan, 1])
    assert row["activation_std"] == 1
    assert row["valence_std"] == pytest.approx(0.5**0.5)
    assert corpus.report.notes == [
        f"ratings of single annotators outside the scale, left out: 1, the first {labels_file()}:20 (valence 6)",
    ]
    assert copy.load().column_names["test"] == list(FEATURES)


def test_ratings_belong_to_the_turn_before_them():
    lines = [
        "A-E1:\tval 1; act 1; dom 1;\t()",
        *block("Ses01F_impro01_F000").splitlines(),
        "1.0 - 2.0]\tSes01F_impro01_F001\tneu\t[3, 3, 3]",
        "A-E9:\tval 5; act 5; dom 5;\t()",
    ]
    file = parse_labels("\n".join(lines), "x.txt")
    assert [(rating.row, rating.annotator) for rating in file.turns[0].ratings] == [
        ("x.txt:5", "E1"),
        ("x.txt:6", "E2"),
    ]
    assert file.other_lines == ["x.txt:1"]
    assert [problem.row for problem in file.problems] == ["x.txt:8"]


# Streaming, settings, report


def test_streaming(copy):
    streamed = copy.load(streaming=True, fold=3)
    assert [row["id"] for row in streamed["test"]] == ["Ses03F_impro01_F000", "Ses03F_impro01_M000"]


def test_the_report(copy):
    report = copy.load(strip_tags=True, fold=2).report
    assert report.name == "iemocap"
    assert report.label_scale == (1, 5)
    assert report.utterances == {"train": 6, "validation": 2, "test": 2}
    assert report.speakers == {"train": 6, "validation": 2, "test": 2}
    assert report.config["fold"] == 2 and report.config["protocol"] == "leave-one-session-out"
    assert "may not be passed on" in report.terms


@pytest.mark.parametrize("kind", ["EmoEvaluation", "transcriptions"])
def test_the_version_follows_labels_and_transcripts(copy, kind):
    before = copy.load().report.version
    assert copy.load().report.version == before
    copy.add(1, kind, "\n")
    assert copy.load().report.version.split("-")[0] != before.split("-")[0]


@pytest.mark.parametrize(
    ("error", "message", "config"),
    [
        (ValueError, r"fold is 6, but must be a whole number from 1 to 5 \(leave-one-session-out\)", {"fold": 6}),
        (ValueError, "fold is 0, but must be", {"fold": 0}),
        (ValueError, "fold is '1', but must be", {"fold": "1"}),
        (ValueError, "fold is True, but must be", {"fold": True}),
        (ValueError, "from 1 to 10", {"fold": 11, "protocol": "leave-one-speaker-out"}),
        (ValueError, "protocol is 'leave-one-speaker', .* Did you mean 'leave-one-", {"protocol": "leave-one-speaker"}),
        (ValueError, "beyond_scale is 'klip', .* Did you mean 'clip'", {"beyond_scale": "klip"}),
        (ValueError, "prefer_transcripts is 'asr', but there are none", {"prefer_transcripts": "asr"}),
        (ValueError, "prefer_transcripts is 'whisper'", {"prefer_transcripts": "whisper"}),
        (FileNotFoundError, "not a folder with Session1 to Session5", {"data_dir": "nowhere"}),
        (ValueError, "data_dir is None", {"data_dir": None}),
    ],
)
def test_settings_are_checked(copy, error, message, config):
    with pytest.raises(error, match=message):
        load_corpus(**{"name": "iemocap", "data_dir": copy.root, **config})


# Any text gives turns, problems or places that are counted

FUZZ = settings(max_examples=200, deadline=None, derandomize=True)
PIECES = st.sampled_from(
    ["[", "]", " ", "\t", ",", "-", "%", "1", "5.5", "nan", "1e9", ":", "\0", "ä", "٣", "[3, 3, 3]", "[1.0 - 2.0]"]
) | st.sampled_from(
    ["Ses01F_impro01_F000", "Ses05M_script01_1b_MXX1", "neu", "A-E1:", "C-E1:", "val 1; act 2; dom ;", "[V, A, D]"]
)
LINES = st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=20)
GOOD_LINES = st.sampled_from([*block("Ses01F_impro01_F000").splitlines(), "Ses01F_impro01_F000 [1.0-2.0]: Hm."])
TEXTS = st.lists(LINES | GOOD_LINES, max_size=8).map("\n".join)


def lines_of(text):
    """Number and content of the lines that are not blank."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


@FUZZ
@given(text=TEXTS)
def test_no_line_of_labels_is_lost(text):
    file = parse_labels(text, "x.txt")
    turns = {turn.row: turn for turn in file.turns}
    problems = {problem.row for problem in file.problems}
    ratings = {rating.row for turn in file.turns for rating in turn.ratings}
    assert len(turns) == len(file.turns)
    assert not problems & turns.keys()
    for number, line in lines_of(text).items():
        row = f"x.txt:{number}"
        if line.startswith("["):
            assert (row in turns) != (row in problems)
        elif line[0] != "%" and not line.startswith(("A-", "C-")):
            assert (row in problems) != (row in file.other_lines)
            assert row in problems or "Ses0" not in line
    for row in turns.keys() | problems | ratings | set(file.other_lines):
        assert int(row.removeprefix("x.txt:")) in lines_of(text)
    for turn in file.turns:
        assert turn.name in text and turn.speaker in SPEAKERS
        assert all(np.isfinite([turn.activation, turn.valence, turn.dominance]))


@FUZZ
@given(text=TEXTS)
def test_no_line_of_transcriptions_is_lost(text):
    file = parse_transcriptions(text, "x.txt")
    found = [row for row, _, _ in file.texts] + file.other_lines
    assert sorted(found) == sorted(f"x.txt:{number}" for number in lines_of(text))
    for row, turn, words in file.texts:
        line = lines_of(text)[int(row.removeprefix("x.txt:"))]
        assert line.startswith(turn) and line.endswith(words)


@FUZZ
@given(
    values=st.tuples(*[st.floats(0.5, 5.5).map(lambda value: f"{value:.4f}")] * 3),
    space=st.sampled_from([" ", "\t", "  \t"]),
)
def test_any_labels_are_read_as_they_stand(values, space):
    line = space.join(["[1.0 - 2.0]", "Ses01F_impro01_M000", "xxx", "[" + ", ".join(values) + "]"])
    (turn,) = parse_labels(line, "x.txt").turns
    assert [turn.valence, turn.activation, turn.dominance] == [float(value) for value in values]


@settings(FUZZ, max_examples=25)
@given(labels=st.binary(max_size=60), transcriptions=st.binary(max_size=60))
def test_any_bytes_give_rows_or_an_error_that_says_where(tmp_path_factory, labels, transcriptions):
    copy = Copy(tmp_path_factory.mktemp("any"))
    copy.write(1, "EmoEvaluation", copy.path(1, "EmoEvaluation").read_bytes() + labels)
    copy.write(1, "transcriptions", copy.path(1, "transcriptions").read_bytes() + transcriptions)
    try:
        assert sum(map(len, copy.load().values())) == 10
    except CorpusError as error:
        assert error.report.problems
        assert all(problem.row.startswith(f"{labels_file()}:") for problem in error.report.problems)


# Copies that were unpacked in another way than the release


@pytest.mark.parametrize(
    "place",
    ["", "Session2", "Session2/sentences/wav", "Session2/dialog/EmoEvaluation", "Session2/dialog/transcriptions"],
)
def test_what_was_unzipped_twice_is_found(copy, place):
    whole = copy.load().report.digest
    outer = copy.root / place
    outer.rename(copy.root.parent / "inner")
    outer.mkdir()
    (copy.root.parent / "inner").rename(outer / outer.name)
    (outer / "__MACOSX").mkdir()
    assert copy.load().report.digest == whole
    assert load_corpus("iemocap", copy.root.parent).report.digest == whole


def test_what_is_not_unzipped_is_named(copy, tmp_path):
    place = copy.root / "Session3/dialog/transcriptions"
    place.rename(tmp_path / "away")
    (copy.root / "Session3/dialog/transcriptions.zip").write_bytes(b"PK")
    with pytest.raises(CorpusError) as caught:
        copy.load()
    (problem,) = caught.value.report.problems
    assert str(problem) == "Session3/dialog/transcriptions: missing folder: unzip transcriptions.zip, which is there"
    (tmp_path / "download").mkdir()
    (tmp_path / "download/IEMOCAP_full_release.tar.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Unpack IEMOCAP_full_release.tar.gz, which is there"):
        load_corpus("iemocap", tmp_path / "download")
