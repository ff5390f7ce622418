"""Transcripts from a sidecar: whose words an utterance gets, and a teacher that gets none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast

from cmkd.corpora import load_corpus
from cmkd.corpora.checks import SourceRow
from cmkd.corpora.report import CorpusReport
from cmkd.corpora.transcripts import SCHEMA, join_transcripts, read_transcripts
from cmkd.features.inputs import TextInputs
from cmkd.losses import ccc_loss
from cmkd.training.collator import collate_utterances
from modeling_cmkd import CMKDTeacherModel

OWN = {"a": "own words", "b": "", "c": None, "d": "  "}


def write_sidecar(path: Path, texts: dict[str, str], **columns) -> Path:
    rows = [
        {"id": identifier, "text": text, "average_log_probability": -0.5, "duration": 1.0, "model": "asr/model",
         "revision": "1", "settings": "{}"} | columns
        for identifier, text in texts.items()
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    return path


def rows_and_report() -> tuple[list[SourceRow], CorpusReport]:
    rows = [SourceRow(row=f"t:{i}", id=i, audio=f"{i}.wav", split="train", transcript=own) for i, own in OWN.items()]
    return rows, CorpusReport(name="corpus", release="1", label_scale=(1, 7), config={})


@pytest.mark.parametrize(
    ("prefer", "expected", "note"),
    [
        (
            "manual",
            ["own words", "heard b", None, ""],
            "2 by asr/model (1) from t.parquet, 1 of the corpus itself, 1 missing",
        ),
        (
            "asr",
            ["heard a", "heard b", None, ""],
            "3 by asr/model (1) from t.parquet, 0 of the corpus itself, 1 missing",
        ),
    ],
)
def test_whose_words_an_utterance_gets(tmp_path, prefer, expected, note):
    sidecar = write_sidecar(tmp_path / "t.parquet", {"a": "heard a", "b": "heard b", "d": "", "z": "of another corpus"})
    rows, report = rows_and_report()
    joined = join_transcripts(rows, sidecar, prefer, report)
    assert [row.transcript for row in joined] == expected
    assert report.notes == [
        f"transcripts: {note}",
        "t.parquet lacks 1 utterances of this corpus: run `cmkd transcribe` again for them",
        "t.parquet has 1 utterances that are not in this corpus",
    ]
    assert report.config == {"transcripts": str(sidecar), "prefer_transcripts": prefer}


def test_the_version_changes_with_the_words_and_with_what_is_preferred(tmp_path):
    versions = set()
    for texts, prefer in (({"a": "x"}, "asr"), ({"a": "y"}, "asr"), ({"a": "x"}, "manual"), ({"a": "x"}, "asr")):
        rows, report = rows_and_report()
        join_transcripts(rows, write_sidecar(tmp_path / "t.parquet", texts), prefer, report)
        assert report.version.startswith("1+transcripts-")
        versions.add(report.version)
    assert len(versions) == 3


def test_without_a_sidecar_nothing_changes(tmp_path):
    rows, report = rows_and_report()
    assert [row.transcript for row in join_transcripts(rows, None, "manual", report)] == list(OWN.values())
    assert (report.version, report.notes, report.config) == ("1", [], {})
    with pytest.raises(ValueError, match="prefer_transcripts is 'asr', but there are none: pass transcripts="):
        join_transcripts(rows, None, "asr", report)
    with pytest.raises(ValueError, match="prefer_transcripts is 'human', but must be 'manual' or 'asr'"):
        join_transcripts(rows, tmp_path / "t.parquet", "human", report)
    with pytest.raises(ValueError, match=r"has 1 utterances, but none of this corpus, whose ids are such as 'a'"):
        join_transcripts(rows, write_sidecar(tmp_path / "t.parquet", {"z": ""}), "asr", report)


def test_ids_are_those_that_the_checks_make(tmp_path):
    rows = [SourceRow("t:1", 7, "a.wav", "train"), SourceRow("t:2", " b ", "b.wav", "train")]
    rows.append(SourceRow("t:3", None, "c.wav", "train"))
    sidecar = write_sidecar(tmp_path / "t.parquet", {"7": "seven", "b": "bee"})
    joined = join_transcripts(rows, sidecar, "manual", rows_and_report()[1])
    assert [row.transcript for row in joined] == ["seven", "bee", ""]


def test_broken_sidecars_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError, match="there is no file .*t.parquet'; `cmkd transcribe` makes one"):
        read_transcripts(path)
    path.write_text("id,text")
    with pytest.raises(ValueError, match="t.parquet cannot be read as Parquet"):
        read_transcripts(path)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), path)
    with pytest.raises(
        ValueError, match=r"t.parquet has the columns id, text, but not average_log_probability, .*settings"
    ):
        read_transcripts(path)
    table = pq.read_table(write_sidecar(path, {"a": "x", "b": "y"}))
    pq.write_table(pa.concat_tables([table, table.slice(1)]), path)
    with pytest.raises(ValueError, match="t.parquet: the id 'b' occurs 2 times"):
        read_transcripts(path)
    pq.write_table(table.set_column(0, "id", pa.array([["a"], ["b"]])), path)
    with pytest.raises(ValueError, match=r"t.parquet: a column has another type than it should, id \(string\)"):
        read_transcripts(path)
    write_sidecar(path, {"a": None})
    with pytest.raises(ValueError, match="t.parquet: 1 rows have no text: write '' where there are no words"):
        read_transcripts(path)


def test_a_manifest_gets_the_words_of_a_sidecar(tmp_path):
    lines = ["id,audio,transcript,valence,split"]
    for identifier, own in (("a", "own words"), ("b", ""), ("c", "")):
        soundfile.write(
            tmp_path / f"{identifier}.wav", np.random.default_rng(ord(identifier)).normal(size=800) * 0.1, 16000
        )
        lines.append(f"{identifier},{identifier}.wav,{own},3,train")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    sidecar = write_sidecar(tmp_path / "t.parquet", {"a": "heard a", "b": "heard b"})
    plain = load_corpus("manifest", tmp_path, label_scale=(1, 7))
    settings = {"label_scale": (1, 7), "transcripts": sidecar}
    manual = load_corpus("manifest", tmp_path, **settings)
    preferred = load_corpus("manifest", tmp_path, **settings, prefer_transcripts="asr")
    assert list(manual["train"]["transcript"]) == ["own words", "heard b", ""]
    assert list(preferred["train"]["transcript"]) == ["heard a", "heard b", ""]
    assert len({corpus.report.version for corpus in (plain, manual, preferred)}) == 3


@pytest.mark.slow
def test_spoken_emobank_gets_the_words_of_a_sidecar(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sentences = {"one": "Nothing is lost.", "two": "All is well here.", "three": "It rains again."}
    lines = ["id,split,V,A,D,text"]
    lines += [f"{i},{s},3,3,3,{sentences[i]}" for i, s in zip(sentences, ("train", "dev", "test"), strict=True)]
    (tmp_path / "emobank.csv").write_text("\n".join(lines) + "\n")
    sidecar = write_sidecar(tmp_path / "t.parquet", {"one": "nothing lasts", "two": "", "three": "it reigns"})
    true = load_corpus("spoken-emobank", tmp_path, num_proc=1)
    heard = load_corpus("spoken-emobank", tmp_path, num_proc=1, transcripts=sidecar, prefer_transcripts="asr")
    found = {row["id"]: row for rows in heard.values() for row in rows}
    assert {i: row["transcript"] for i, row in found.items()} == {
        "one": "nothing lasts",
        "two": "",
        "three": "it reigns",
    }
    for split, rows in true.items():
        assert rows.features == heard[split].features
        for row in rows:
            assert row | {"transcript": found[row["id"]]["transcript"]} == found[row["id"]]
    assert heard.report.version.startswith(f"{true.report.version}+transcripts-")
    manual = load_corpus("spoken-emobank", tmp_path, num_proc=1, transcripts=sidecar)
    assert list(manual["test"]["transcript"]) == [sentences["three"]]


def teacher(folder: Path) -> tuple[CMKDTeacherModel, BertTokenizer]:
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day"]))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    text = BertConfig(vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(text).save_pretrained(folder / "text")
    scales = {"label_scale": [1.0, 7.0], "label_mean": [0.5] * 3, "label_std": [0.2] * 3}
    return CMKDTeacherModel.from_pretrained_encoders(None, str(folder / "text"), **scales), tokenizer


@pytest.mark.parametrize("texts", [["good day", "", "day", ""], ["", "", "", ""]])
def test_a_teacher_handles_utterances_without_words(tmp_path, texts):
    """Finite in training and evaluation; an utterance without words scores the same alone and in any batch."""
    model, tokenizer = teacher(tmp_path)
    inputs = TextInputs(Dataset.from_dict({"transcript": texts}), tokenizer)
    batch = collate_utterances([{"input_ids": inputs[index]} for index in range(4)])
    model.train()
    logits = model(**batch).logits
    ccc_loss(logits, torch.rand(4, 3)).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert logits.isfinite().all() and gradients and all(g is not None and g.isfinite().all() for g in gradients)
    model.eval()
    with torch.no_grad():
        logits = model(**batch).logits
        alone = model(**collate_utterances([{"input_ids": inputs[1]}])).logits[0]
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[1], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits[1], logits[3], atol=1e-6, rtol=0)


def test_a_tokenizer_without_special_tokens_says_no_words_by_its_end_token():
    words = Tokenizer(WordLevel({"good": 0, "<end>": 1, "<unk>": 2}, unk_token="<unk>"))
    rows = Dataset.from_dict({"id": ["a", "b"], "transcript": ["good", ""]})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>")
    assert TextInputs(rows, tokenizer).ids == [[0], [1]]
    endless = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(ValueError, match="Utterance 'b' has no tokens, and the tokenizer has no end token"):
        TextInputs(rows, endless)
