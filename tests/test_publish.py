"""Pushing and pulling over HTTP, against a Hub on loopback, with the faults that networks and servers have."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from browser import HEARD, ISOLATED, chromium, microphone, served, web_runtime
from command import call
from huggingface_hub import ModelCard
from local_hub import TOKEN, USER, Fault, LocalHub
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import SECRET, TERMS, copy_run, make_run
from transformers import AutoModel, pipeline
from warm import Warm, module

import cmkd.export.page
from cmkd.corpora import load_corpus
from cmkd.hub.staging import published_results, stage_run, without_paths
from cmkd.identity import folder_digest
from cmkd.metrics import CONCORDANCE_CC

pytestmark = pytest.mark.slow

CODE = {"audio_cmkd.py", "configuration_cmkd.py", "modeling_cmkd.py", "pipeline_cmkd.py", "speech_encoder_cmkd.py"}
CODE |= {"windows_cmkd.py"}
STUDENT = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "results.json"}
STUDENT |= CODE
TEACHER = STUDENT | {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("of_a_user") / "run")


def staged(run, folder, **arguments):
    folder.mkdir()
    return stage_run(run, "user/toys", folder, **arguments)


# What goes along, without a network


def test_what_goes_along_is_listed_by_name(run, tmp_path):
    student = staged(run, tmp_path / "student")
    assert {path.name for path in student.folder.iterdir()} == STUDENT
    assert set(student.left_out) == {
        "checkpoint-3",
        "optimizer.pt",
        "stage.json",
        "train_embeddings.parquet",
        "training_args.bin",
        "training_log.json",
        f"{SECRET}.wav",
    }
    teacher = staged(run, tmp_path / "teacher", is_teacher=True)
    assert {path.name for path in teacher.folder.iterdir()} == TEACHER


@pytest.mark.parametrize("is_teacher", [False, True])
def test_nothing_of_this_machine_and_of_the_corpus_goes_along(run, tmp_path, is_teacher):
    folder = staged(run, tmp_path / "x", is_teacher=is_teacher).folder
    for path in folder.iterdir():
        content = path.read_bytes()
        for private in (SECRET, str(run.parent), run.parent.name, str(Path.home()) + "/"):
            assert private.encode() not in content, (path.name, private)
    text = (folder / "recipe.yaml").read_text()
    assert "cmkd train recipe.yaml --corpus.data_dir ... --corpus.transcripts ... --output_dir ..." in text
    recipe = yaml.safe_load(text)
    assert recipe["corpus"] == {"name": "toys", "transcripts": "words.parquet"}
    assert recipe["teacher_speech_encoder"] == "big" and recipe["num_epochs"] == 3
    config = json.loads((folder / "config.json").read_text())
    assert config["speech_config"]["_name_or_path"] == "tones/speech"
    results = json.loads((folder / "results.json").read_text())
    assert results["corpus"]["warnings"] == ["there are 1.5 h in corpus, but Toys 1.0 has 84 h"]
    assert results["systems"] == json.loads((run / "results.json").read_text())["systems"]


def test_a_token_stops_it_and_is_not_shown(run, tmp_path, monkeypatch):
    token = "hf_" + "a1" * 17
    other = copy_run(run, tmp_path / "run", student={"stage": "cts", "reason": f"because {token}"})
    with pytest.raises(ValueError, match=r"README.md holds a token .* revoke it") as caught:
        staged(other, tmp_path / "x")
    assert token not in str(caught.value)
    plain = copy_run(run, tmp_path / "plain", student={"stage": "cts", "reason": "because my-own-token"})
    with pytest.raises(ValueError, match="holds a token"):
        staged(plain, tmp_path / "y", token="my-own-token")


def test_a_path_that_scrubbing_does_not_know_stops_it(run, tmp_path):
    other = copy_run(run, tmp_path / "run")
    code = other / "student/pipeline_cmkd.py"
    code.write_text(code.read_text() + f"\n# {Path.home()}/my/notes\n")
    with pytest.raises(ValueError, match="pipeline_cmkd.py holds a path of this machine"):
        staged(other, tmp_path / "x")


def test_half_of_the_size_and_loaded_as_before(run, tmp_path):
    """The weights are numpy's float16 of what they were; AutoModel gives fp32 again, and nearly the same scores."""
    folder = tmp_path / "halved"
    printed = call("push", str(run), "user/toys", "--half", "--output", str(folder)).stdout
    assert f"wrote {folder}" in printed and {path.name for path in folder.iterdir()} == STUDENT
    with (
        safe_open(run / "student/model.safetensors", "np") as whole,
        safe_open(folder / "model.safetensors", "np") as halved,
    ):
        names = list(whole.keys())
        assert sorted(names) == sorted(halved.keys()) and halved.metadata() == {"format": "pt"}
        for name in names:
            stored = halved.get_tensor(name)
            assert stored.dtype == np.float16, name
            np.testing.assert_array_equal(stored, whole.get_tensor(name).astype(np.float16))
    models = [AutoModel.from_pretrained(path, trust_remote_code=True).eval() for path in (run / "student", folder)]
    assert {parameter.dtype for parameter in models[1].parameters()} == {torch.float32}
    wave = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = [model(input_values=wave).logits for model in models]
    torch.testing.assert_close(scores[1], scores[0], atol=2e-3, rtol=0)
    assert not torch.equal(scores[1], scores[0])


def test_notices_travel_with_the_weights(run, tmp_path):
    notice = tmp_path / "notices.txt"
    notice.write_text("Words © 2006 Princeton University\n", encoding="utf-8")
    plain, noticed = staged(run, tmp_path / "plain"), staged(run, tmp_path / "noticed", notice=notice)
    assert {path.name for path in noticed.folder.iterdir()} == STUDENT | {"NOTICE"}
    assert (noticed.folder / "NOTICE").read_bytes() == notice.read_bytes()
    assert noticed.tag != plain.tag
    cards = [ModelCard.load(one.folder / "README.md") for one in (plain, noticed)]
    assert ["NOTICE" in card.text for card in cards] == [False, True]
    assert [card.data.to_dict().get("license_link") for card in cards] == [None, "NOTICE"]
    assert cards[1].data.license == "other"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        staged(run, tmp_path / "x", notice=tmp_path / "nowhere.txt")


def test_a_weight_that_fp16_cannot_hold_is_refused(run, tmp_path):
    other = copy_run(run, tmp_path / "run")
    path = other / "student/model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} holds 100000, but fp16 ends at 65504: push it without --half"
    ):
        staged(other, tmp_path / "x", half=True)


def audit_of(folder: Path, audit: Path) -> Path:
    """A folder with what a push reads of an audit, of the model in another folder."""
    audit.mkdir()
    (audit / "audit.json").write_text(json.dumps({"model": {"identity": folder_digest(folder)}}))
    (audit / "card.md").write_text("---\nmodel-index: []\n---\n\n## Audit\n\nIt --- passed.\n")
    return audit


def test_an_audit_of_these_weights_goes_into_the_card(run, tmp_path):
    folder = tmp_path / "pushed"
    call("push", str(run), "user/toys", "--half", "--output", str(folder))
    audit = audit_of(folder, tmp_path / "audit")
    plain = (folder / "README.md").read_text()
    audited = staged(run, tmp_path / "x", half=True, audit=audit).card
    assert audited == plain.replace("## Compute\n", "## Audit\n\nIt --- passed.\n\n## Compute\n") != plain
    with pytest.raises(
        ValueError, match=r"an audit of the model sha256-.*, but what is pushed is sha256-.* with --output"
    ):
        staged(run, tmp_path / "y", audit=audit)  # these are the weights in fp32


def test_a_folder_in_place_of_the_hub(run, tmp_path):
    expected = staged(run, tmp_path / "staged").folder
    folder = tmp_path / "deep/written"
    call("push", str(run), "user/toys", "--output", str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }
    assert [path.name for path in folder.parent.iterdir()] == ["written"]  # nothing unfinished is left
    again = call("push", str(run), "user/toys", "--output", str(folder))
    assert again.exit_code != 0 and "which exists: remove it, or name a new folder" in again.stderr
    for option in ("--public", "--dry_run", "--revision=x"):
        refused = call("push", str(run), "user/toys", "--output", str(tmp_path / "y"), option)
        assert refused.exit_code != 0 and "leave out --dry_run, --public and --revision" in refused.stderr
    assert not (tmp_path / "y").exists()
    failed = call("push", str(run), "no name", "--output", str(tmp_path / "z"))
    assert failed.exit_code != 0 and not (tmp_path / "z").exists()


def test_paths_lose_all_but_their_last_part():
    content = {
        "a": ["/data/me/x.wav", "see C:\\Users\\me\\x.wav, and ~/corpora/y", "https://a.org/b/c", "and/or", 3, None],
        "_name_or_path": "recipes/../encoders/speech",
        "speech_config": {"_name_or_path": "facebook/hubert-base-ls960"},
    }
    assert without_paths(content) == {
        "a": ["x.wav", "see x.wav, and y", "https://a.org/b/c", "and/or", 3, None],
        "_name_or_path": "",
        "speech_config": {"_name_or_path": "facebook/hubert-base-ls960"},
    }


def test_notes_stay_only_of_corpora_that_cmkd_makes(run):
    results = json.loads((run / "results.json").read_text())
    assert published_results(results)["corpus"]["notes"] == []
    results["corpus"] |= {"name": "spoken-demo", "notes": ["synthetic speech"]}
    assert published_results(results)["corpus"]["notes"] == ["synthetic speech"]


def test_the_tag_follows_the_content(run, tmp_path):
    first = staged(run, tmp_path / "a")
    assert first.tag == staged(run, tmp_path / "b").tag and first.tag in first.card
    other = copy_run(run, tmp_path / "run", seed=8)
    assert staged(other, tmp_path / "c").tag != first.tag


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("results.json", FileNotFoundError, r"no file .*results.json: .* is not the folder of a complete run"),
        ("student/model.safetensors", FileNotFoundError, r"student lacks model.safetensors: run the stages"),
        ("student/modeling_cmkd.py", FileNotFoundError, r"student lacks modeling_cmkd.py"),
        ("student/speech_encoder_cmkd.py", FileNotFoundError, r"student lacks speech_encoder_cmkd.py"),
    ],
)
def test_an_incomplete_run_is_refused(run, tmp_path, change, error, message):
    other = copy_run(run, tmp_path / "run")
    (other / change).unlink()
    with pytest.raises(error, match=message):
        staged(other, tmp_path / "x")


def test_a_run_of_an_earlier_version_goes_with_the_code_files_that_it_has(run, tmp_path):
    """Their model file held the speech encoders too."""
    other = copy_run(run, tmp_path / "run")
    (other / "student/speech_encoder_cmkd.py").unlink()
    (other / "student/modeling_cmkd.py").write_text("from .configuration_cmkd import CMKDStudentConfig\n")
    found = staged(other, tmp_path / "x")
    code = CODE - {"speech_encoder_cmkd.py"}
    assert {path.name for path in found.folder.glob("*.py")} == code
    (named,) = re.findall(r"`trust_remote_code=True` runs (.*?) of this repository", " ".join(found.card.split()))
    assert set(re.findall(r"`(.*?)`", named)) == code


def test_dry_run_lists_the_files_and_prints_the_card(run):
    result = call("push", str(run), "user/toys", "--dry_run", "--license", "mit")
    assert result.exit_code == 0
    assert set(re.findall(r"^ +[\d,]+  (\S+\.\S+)$", result.stdout, re.MULTILINE)) == STUDENT
    assert "license: mit" in result.stdout and "## How good it is" in result.stdout
    assert re.search(r"Stays behind: .*optimizer.pt", result.stdout)
    result = call("push", str(run), "no name", "--dry_run")
    assert result.exit_code == 1 and result.stderr.startswith("cmkd push: Repo id must")


# Over HTTP

PUSHES = """
import json, sys, time
import cmkd.hub.attempts
from command import call

time.sleep = lambda seconds: None  # between attempts
answers = {}
for name, arguments in json.loads(sys.argv[1]).items():
    cmkd.hub.attempts.TIMEOUT = 3.0 if name.startswith("is_slow") else 300.0
    answers[name] = list(call(*arguments))
print(json.dumps(answers))
"""


def in_process(python: Warm, code: str, *arguments: str, environment: dict[str, str], cwd: Path) -> dict:
    of_our_own = {name: None for name in os.environ if name.startswith("HF_")}
    process = python.run(code, *arguments, environment=of_our_own | environment, cwd=cwd)
    assert process.returncode == 0, process.stderr
    assert TOKEN not in process.stdout + process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as server:
        yield server


OLD = {"model.safetensors": b"old weights", "README.md": b"old card", "tokenizer.json": b"{}", "photo.png": b"mine"}
COMMIT, NEW = r"/api/models/user/{}/commit/.*", "/api/repos/create"
FAULTS = {
    "commit_fails_twice": ("POST", COMMIT, Fault(status=503), 2),
    "commit_fails": ("POST", COMMIT, Fault(status=500), 99),
    "answer_is_lost": ("POST", COMMIT, Fault(lost=True), 1),
    "no_answer": ("POST", COMMIT, Fault(lost=True), 99),
    "is_slow_once": ("POST", r"/api/models/user/{}/preupload/.*", Fault(seconds=4.5), 1),
    "is_slow": ("GET", "/api/models/user/{}", Fault(seconds=4.5), 99),
    "is_slow_to_commit": ("POST", COMMIT, Fault(seconds=4.5), 1),
    "upload_fails_twice": ("PUT", "/lfs/.*", Fault(status=500), 2),
    "upload_fails": ("POST", r"/user/{}\.git/info/lfs/objects/batch", Fault(status=500), 99),
    "token_is_refused": (
        "POST",
        COMMIT,
        Fault(401, {"X-Error-Message": f"Invalid credentials: Bearer {TOKEN}"}),  # which may be shown to nobody
        99,
    ),
    "may_not_write": ("POST", COMMIT, Fault(403, {"X-Error-Message": "You need write access"}), 99),
    "is_gone": ("POST", r"/api/models/user/{}/preupload/.*", Fault(404, {"X-Error-Code": "RepoNotFound"}), 99),
    "is_gated": ("GET", r"/api/models/user/{}(/revision/.*)?", Fault(403, {"X-Error-Code": "GatedRepo"}), 99),
    "tag_fails_once": ("POST", r"/api/models/user/{}/tag/.*", Fault(status=500), 1),
}


@pytest.fixture(scope="module")
def pushes(python, run, hub, tmp_path_factory) -> dict[str, list]:
    """Exit code, output and error of many calls of `cmkd push`; each with a fault goes to a repository that has OLD."""
    home = tmp_path_factory.mktemp("home")
    calls = {
        "student": [str(run), "user/student"],
        "again": [str(run), "user/student"],
        "teacher": [str(run), "user/teacher", "--teacher", "--public"],
        "over_the_teacher": [str(run), "user/teacher", "--public", "--revision", "students"],
        "open_already": [str(run), "user/open"],
        "in_public": [str(run), "user/in_public", "--public"],
        "no_such_run": [str(run / "nothing"), "user/student"],
        "audited": [
            str(run),
            "user/audited",
            "--audit",
            str(audit_of(staged(run, home / "staged").folder, home / "audit")),
        ],
    }
    for name in ("open", *FAULTS):
        hub.make("models", f"{USER}/{name}", OLD, private=name != "open")
    for name, (method, path, fault, times) in FAULTS.items():
        if method != "PUT":
            hub.fail(method, path.replace("{}", name), fault, times)
        calls[name] = [str(run), f"user/{name}"]
    method, path, fault, times = FAULTS["upload_fails_twice"]
    hub.fail(method, path, fault, times)
    environment = hub.environment(home)
    calls = {name: ["push", *arguments] for name, arguments in calls.items()}
    return in_process(python, PUSHES, json.dumps(calls), environment=environment, cwd=home)


def test_a_student_is_pushed_in_one_commit_and_in_private(pushes, hub):
    code, output, error = pushes["student"]
    assert code == 0, error
    repository = hub.repositories["models", "user/student"]
    assert repository.private and set(hub.files("models", "user/student")) == STUDENT
    assert repository.messages == ["initial commit", "Model, card and results, by CMKD"]
    sha = repository.branches["main"]
    (tag,) = repository.tags
    assert repository.tags[tag] == sha
    assert f"AutoModel.from_pretrained('user/student', revision='{sha}', trust_remote_code=True)" in output
    assert f'"{tag}"' in hub.files("models", "user/student")["README.md"].decode()


def test_a_card_on_the_hub_has_its_audit(pushes, hub):
    code, _, error = pushes["audited"]
    assert code == 0, error
    assert "## Audit\n\nIt --- passed.\n\n## Compute\n" in hub.files("models", "user/audited")["README.md"].decode()


def test_nothing_private_is_on_the_hub(pushes, hub, run):
    for (_, name), repository in hub.repositories.items():
        for tree in repository.commits.values():
            for path, content in tree.items():
                for private in (SECRET, str(run.parent), run.parent.name, TOKEN):
                    assert private.encode() not in content, (name, path, private)
    for private in (SECRET, run.parent.name):
        assert not any(private.encode() in content for content in hub.large_files.values())


def test_the_same_push_again_changes_nothing(pushes, hub):
    assert pushes["again"][:2] == pushes["student"][:2]
    assert len(hub.repositories["models", "user/student"].commits) == 2


def test_a_teacher_takes_its_tokenizer_along(pushes, hub):
    assert pushes["teacher"][0] == 0, pushes["teacher"]
    assert set(hub.files("models", "user/teacher")) == TEACHER
    assert not hub.repositories["models", "user/teacher"].private


def test_what_only_the_push_before_made_is_removed_on_that_branch(pushes, hub):
    assert pushes["over_the_teacher"][0] == 0, pushes["over_the_teacher"]
    assert set(hub.files("models", "user/teacher", "students")) == STUDENT
    assert set(hub.files("models", "user/teacher")) == TEACHER


def test_a_licensed_model_goes_into_the_open_only_on_request(pushes, hub):
    code, _, error = pushes["open_already"]
    assert code == 1 and "user/open', which exists and is public" in error and TERMS in error
    assert hub.files("models", "user/open") == OLD
    assert pushes["in_public"][0] == 0 and not hub.repositories["models", "user/in_public"].private


@pytest.mark.parametrize(
    "name", ["commit_fails_twice", "answer_is_lost", "is_slow_once", "upload_fails_twice", "tag_fails_once"]
)
def test_trouble_that_passes_is_waited_out(pushes, hub, name):
    code, output, error = pushes[name]
    assert code == 0, error
    repository = hub.repositories["models", f"user/{name}"]
    assert set(hub.files("models", f"user/{name}")) == STUDENT | {"photo.png"}
    assert repository.branches["main"] in output and list(repository.tags.values()) == [repository.branches["main"]]
    assert repository.messages.count("Model, card and results, by CMKD") == 1


def test_a_commit_that_is_answered_too_late_is_not_lost(pushes, hub):
    code, _, error = pushes["is_slow_to_commit"]
    assert code == 0, error
    assert set(hub.files("models", "user/is_slow_to_commit")) == STUDENT | {"photo.png"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("commit_fails", r"the Hub cannot serve the request now \(500\), several attempts included"),
        ("is_slow", r"the Hub does not answer \(ReadTimeout\), several attempts included"),
        ("upload_fails", r"the Hub cannot serve the request now \(500\)"),
        (
            "token_is_refused",
            r"the Hub does not accept the token \(401\): run .* Invalid credentials: Bearer \(token\)",
        ),
        ("may_not_write", r"the token may not write to user/may_not_write \(403\).* It says: You need write access"),
        ("is_gone", r"the Hub does not know user/is_gone, or does not show it to this token \(404\)"),
        ("is_gated", r"user/is_gated is gated, and this token has no access"),
    ],
)
def test_trouble_that_stays_is_explained_and_the_old_revision_with_it(pushes, hub, name, message):
    code, output, error = pushes[name]
    assert (code, output) == (1, "")
    last = error.strip().splitlines()[-1]
    assert re.match(f"cmkd push: {message}", last), error
    assert "holds what it held before, or all of this push; the same command can be repeated." in last
    assert "Traceback" not in error and hub.files("models", f"user/{name}") == OLD


def test_a_push_whose_every_answer_is_lost_says_so_and_is_there_once(pushes, hub):
    code, _, error = pushes["no_answer"]
    messages = hub.repositories["models", "user/no_answer"].messages
    assert messages.count("Model, card and results, by CMKD") == 1
    assert code == 0, error  # the second attempt finds everything there


def test_errors_before_the_network_are_one_line(pushes):
    code, _, error = pushes["no_such_run"]
    assert code == 1 and re.match("cmkd push: no file .*results.json", error)


PULLS = """
import importlib.abc, json, re, sys

class NoCheckout(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if "." not in name and name.endswith("cmkd"):
            raise ModuleNotFoundError(f"no module {name}", name=name)

sys.meta_path.insert(0, NoCheckout())
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoModelForAudioClassification

wanted = json.loads(sys.argv[1])
answers = {}
for name, revision in wanted["cards"].items():
    card = open(hf_hub_download(name, "README.md", revision=revision)).read()
    variables = {}
    for snippet in re.findall(r"```python\\n(.*?)```", card, re.DOTALL):
        exec(snippet, variables)
    answers[name] = variables["output"].logits.tolist()
    if "score" in variables:
        answers["pipeline"] = list(variables["score"]("speech.wav")["scores"].values())
        by_class = AutoModelForAudioClassification.from_pretrained(name, revision=revision, trust_remote_code=True)
        pinned = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=True)
        for model in (by_class, pinned):
            states = model.state_dict().items()
            assert all(torch.equal(value, variables["model"].state_dict()[key]) for key, value in states)
for name in wanted["faulty"]:
    try:
        AutoModel.from_pretrained(name, trust_remote_code=True)
        answer = "loaded"
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    answers.setdefault(name, []).append(answer)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pulls(python, pushes, hub, run, tmp_path_factory) -> dict[str, dict]:
    """Answers of fresh processes without this package: one that loads from the Hub, and one offline after it."""
    folder = tmp_path_factory.mktemp("somebody_else")
    speech = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(folder / "speech.wav", speech, 16000)
    student = hub.repositories["models", "user/student"]
    faults = {
        "fails_once": ("GET", "/user/{}/resolve/.*/model.safetensors", Fault(status=503), 1),
        "is_cut_once": ("GET", "/user/{}/resolve/.*/model.safetensors", Fault(half=True), 1),
        "stands_still_once": ("GET", "/user/{}/resolve/.*/model.safetensors", Fault(seconds=4.5), 1),
        "is_closed": ("HEAD", "/user/{}/resolve/.*", Fault(403, {"X-Error-Code": "GatedRepo"}), 99),
        "is_private": ("HEAD", "/user/{}/resolve/.*", Fault(401, {"X-Error-Code": "RepoNotFound"}), 99),
    }
    for name, (method, path, fault, times) in faults.items():
        hub.repositories["models", f"user/{name}"] = student
        hub.fail(method, path.format(name), fault, times)
    pickled = dict(hub.files("models", "user/student"))
    pickled["pytorch_model.bin"] = pickled.pop("model.safetensors")
    hub.make("models", "user/pickled", pickled, private=False)
    cards = {"user/student": student.branches["main"], "user/teacher": "main"}
    faulty = [f"user/{name}" for name in (*faults, "absent", "pickled", "fails_once")]
    environment = hub.environment(tmp_path_factory.mktemp("cache")) | {"HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    online = in_process(
        python, PULLS, json.dumps({"cards": cards, "faulty": faulty}), environment=environment, cwd=folder
    )
    offline = json.dumps({"cards": cards, "faulty": ["user/absent"]})
    environment |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    return {"online": online, "offline": in_process(python, PULLS, offline, environment=environment, cwd=folder)}


def test_the_code_on_the_card_gives_what_the_run_s_own_checkpoint_gives(pulls, run):
    import torch
    from transformers import AutoFeatureExtractor, AutoTokenizer

    from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

    speech = 0.1 * np.random.default_rng(0).standard_normal(8000)
    speech = np.round(speech * 2**15) / 2**15  # as a file of 16 bits holds it
    tokens = AutoTokenizer.from_pretrained(run / "teacher")("the words that are spoken in it", return_tensors="pt")
    text = {"input_ids": tokens["input_ids"], "text_attention_mask": tokens["attention_mask"]}
    for name, model_class, more in (("student", CMKDStudentModel, {}), ("teacher", CMKDTeacherModel, text)):
        model = model_class.from_pretrained(run / name).eval()
        extractor = AutoFeatureExtractor.from_pretrained(run / name)
        with torch.no_grad():
            expected = model(**extractor(speech, sampling_rate=16000, return_tensors="pt"), **more).logits
        np.testing.assert_allclose(pulls["online"][f"user/{name}"], expected.numpy(), atol=2e-4)
    np.testing.assert_allclose(pulls["online"]["pipeline"], pulls["online"]["user/student"][0], atol=1e-5)


def test_what_was_pulled_works_offline(pulls):
    for name in ("user/student", "user/teacher", "pipeline"):
        assert pulls["offline"][name] == pulls["online"][name]
    assert pulls["offline"]["user/absent"][0].startswith("OSError: ")


@pytest.mark.parametrize("name", ["is_cut_once", "stands_still_once"])
def test_a_pull_waits_out_what_passes(pulls, name):
    assert pulls["online"][f"user/{name}"] == ["loaded"]


def test_a_pull_that_the_server_fails_says_so_and_can_be_repeated(pulls):
    """huggingface_hub does not repeat a download that is answered with an error of the server."""
    first, second = pulls["online"]["user/fails_once"]
    assert first.startswith("OSError: ") and "503 Service Unavailable" in first and second == "loaded"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("is_closed", "OSError: You are trying to access a gated repo"),
        ("is_private", "OSError: user/is_private is not a local folder and is not a valid model identifier"),
        ("absent", "OSError: user/absent is not a local folder and is not a valid model identifier"),
    ],
)
def test_a_pull_that_is_not_allowed_says_why(pulls, name, message):
    (answer,) = pulls["online"][f"user/{name}"]
    assert answer.startswith(message)


# A corpus


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    """The folder of a small corpus of a user."""
    folder = tmp_path_factory.mktemp("corpus_of_a_user")
    lines = ["id,audio,transcript,valence,speaker,split"]
    for index, split in enumerate(("train", "train", "validation", "test")):
        soundfile.write(folder / f"{index}.wav", 0.1 * np.random.default_rng(index).normal(size=4000), 16000)
        lines.append(f"u{index},{index}.wav,so be it,{index + 1},s{split},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_dry_run_says_what_of_a_corpus_would_go(toys):
    arguments = ["push-corpus", "manifest", "user/toys", str(toys), "--corpus.label_scale", "1", "7", "--dry_run"]
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    sound = {split: sum((toys / f"{n}.wav").stat().st_size for n in rows) for split, rows in
             {"train": (0, 1), "validation": (2,), "test": (3,)}.items()}  # fmt: skip
    for split, size in sound.items():
        assert re.search(
            rf"^ +{size:,}  bytes of sound, {2 if split == 'train' else 1} rows of {split}$", result.stdout, re.M
        )
    assert "To a private data set, if it has to be made; tag cmkd-" in result.stdout
    assert 'load_dataset("user/toys", revision="cmkd-' in result.stdout and str(toys) not in result.stdout
    result = call(*arguments[:2], "no name", *arguments[3:])
    assert result.exit_code == 1 and result.stderr.startswith("cmkd push-corpus: Repo id must")


@pytest.mark.parametrize("is_dry", [False, True])
def test_a_licensed_corpus_is_not_pushed_in_public_without_a_reason(toys, is_dry, monkeypatch):
    def load(*arguments, **settings):
        corpus = load_corpus("manifest", toys, label_scale=(1, 7))
        corpus.report.terms = TERMS
        return corpus

    monkeypatch.setattr("cmkd.commands.hub.load_corpus", load)
    monkeypatch.setenv("HF_TOKEN", "some-token")
    options = ["--corpus.label_scale", "1", "7"]
    arguments = ["push-corpus", "manifest", "user/toys", *options, "--public", *(["--dry_run"] if is_dry else [])]
    result = call(*arguments)
    assert result.exit_code == 1 and f"'manifest' is licensed: {TERMS} Leave it private, or pass" in result.stderr
    result = call(*arguments, "--public_permission", "please")
    assert result.exit_code == 1 and "'please', but must be a sentence" in result.stderr
    if is_dry:
        result = call(*arguments, "--public_permission", "The Institute of Toys wrote so.")
        assert (
            "from whoever pushed it: The Institute of Toys wrote so." in result.stdout
            and f"**Terms:** {TERMS}" in result.stdout
        )


LOADS = """
import json, re, sys
from datasets import Audio
from huggingface_hub import hf_hub_download
wanted = json.loads(sys.argv[1])
card = open(hf_hub_download(wanted["repo"], "README.md", repo_type="dataset")).read()
variables = {}
exec(re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1], variables)
exec("pinned = " + wanted["line"], variables)
rows = {split: rows.cast_column("audio", Audio(decode=False)).to_list() for split, rows in variables["corpus"].items()}
sounds = [row["audio"]["bytes"].hex() for split in rows.values() for row in split]
same = [variables["pinned"][split]["id"] == variables["corpus"][split]["id"] for split in rows]
ids = {split: [row["id"] for row in rows[split]] for split in rows}
print(json.dumps({"ids": ids, "sounds": sounds, "same": same}))
"""

CORPUS_FAULTS = {
    "data_fail_twice": ("POST", "/api/datasets/user/{}/commit/.*", Fault(status=503), 2),
    "data_tag_fails_once": ("POST", "/api/datasets/user/{}/tag/.*", Fault(status=500), 1),
    "data_may_not": ("POST", "/api/datasets/user/{}/commit/.*", Fault(403, {"X-Error-Message": "You need access"}), 99),
    "data_stay_away": ("POST", "/api/datasets/user/{}/preupload/.*", Fault(status=500), 99),
}


@pytest.fixture(scope="module")
def corpus_pushes(python, toys, hub, tmp_path_factory) -> dict[str, list]:
    home = tmp_path_factory.mktemp("home_of_a_corpus")
    names = ["toys", "toys_again", *CORPUS_FAULTS]
    calls = {}
    for name in names:
        repo = "user/toys" if name == "toys_again" else f"user/{name}"
        calls[name] = ["push-corpus", "manifest", repo, str(toys), "--corpus.label_scale", "1", "7"]
    for name, (method, path, fault, times) in CORPUS_FAULTS.items():
        hub.fail(method, path.format(name), fault, times)
    hub.make("datasets", "user/data_may_not", {"data/train.parquet": b"old"}, private=True)
    environment = hub.environment(home)
    return in_process(python, PUSHES, json.dumps(calls), environment=environment, cwd=home)


def test_a_corpus_is_pushed_in_private_and_taken_off_again_by_its_card(python, corpus_pushes, hub, toys, tmp_path):
    code, output, error = corpus_pushes["toys"]
    assert code == 0, error
    repository = hub.repositories["datasets", "user/toys"]
    (tag,) = repository.tags
    sha = repository.tags[tag]
    line = f"load_dataset('user/toys', revision={sha!r})"
    assert repository.private and line in output and sha == repository.branches["main"]
    files = hub.files("datasets", "user/toys")
    assert not any(toys.name.encode() in content or TOKEN.encode() in content for content in files.values())
    wanted = json.dumps({"repo": "user/toys", "line": line})
    loaded = in_process(python, LOADS, wanted, environment=hub.environment(tmp_path), cwd=tmp_path)
    assert loaded["ids"] == {"train": ["u0", "u1"], "validation": ["u2"], "test": ["u3"]} and all(loaded["same"])
    assert loaded["sounds"] == [(toys / f"{index}.wav").read_bytes().hex() for index in range(4)]


def test_the_same_corpus_again_changes_nothing(corpus_pushes, hub):
    assert corpus_pushes["toys_again"][0] == 0, corpus_pushes["toys_again"]
    repository = hub.repositories["datasets", "user/toys"]
    first, again = (repository.commits[sha] for sha in (*repository.tags.values(), repository.branches["main"]))
    assert first == again and len(repository.tags) == 1


@pytest.mark.parametrize("name", ["data_fail_twice", "data_tag_fails_once"])
def test_a_corpus_waits_out_what_passes(corpus_pushes, hub, name):
    code, _, error = corpus_pushes[name]
    assert code == 0, error
    assert hub.files("datasets", f"user/{name}").keys() == hub.files("datasets", "user/toys").keys()
    assert len(hub.repositories["datasets", f"user/{name}"].tags) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data_may_not", r"the token may not write to user/data_may_not \(403\).* It says: You need access"),
        ("data_stay_away", r"the Hub cannot serve the request now \(500\), several attempts included"),
    ],
)
def test_a_corpus_that_cannot_be_pushed_says_why(corpus_pushes, hub, name, message):
    code, output, error = corpus_pushes[name]
    assert (code, output) == (1, "")
    assert re.match(f"cmkd push-corpus: {message}", error.strip().splitlines()[-1]), error
    assert not hub.repositories["datasets", f"user/{name}"].tags
    if name == "data_may_not":
        assert hub.files("datasets", "user/data_may_not") == {"data/train.parquet": b"old"}


# Spaces


@pytest.fixture(scope="module")
def web(session_folder) -> Path:
    pytest.importorskip("onnxruntime", reason='needs the extra "export"')
    return web_runtime(session_folder)


@pytest.fixture(scope="module")
def pages(python, pushes, hub, web, tmp_path_factory) -> dict[str, list]:
    """Answers of `cmkd push-space`; after the pushes of student and teacher."""
    home = tmp_path_factory.mktemp("home_of_pages")
    old = {"app.py": b"import gradio", "model.json": b"{}", "requirements.txt": b"torch", "mine.png": b"mine"}
    hub.make("spaces", "user/page", old, private=True)
    hub.make("spaces", "user/open_page", {}, private=False)
    calls = {
        "page": ["push-space", "user/page", "user/student"],
        "public": ["push-space", "user/public_page", "user/student", "--revision", "main", "--public"],
        "private_model": ["push-space", "user/open_page", "user/student"],
        "teacher": ["push-space", "user/nothing", "user/teacher"],
        "no_model": ["push-space", "user/nothing", "user/absent"],
    }
    calls = {name: [*words, "--onnxruntime_web", str(web)] for name, words in calls.items()}
    environment = hub.environment(home)
    return in_process(python, PUSHES, json.dumps(calls), environment=environment, cwd=home)


def test_a_page_holds_the_model_of_one_commit(pages, hub):
    code, output, error = pages["page"]
    assert code == 0, error
    sha = hub.repositories["models", "user/student"].branches["main"]
    files = hub.files("spaces", "user/page")
    student = json.loads(files["student.json"])
    assert (student["model"], student["identity"], student["precision"]) == ("user/student", sha, "fp16")
    static = {path.name for path in (Path(cmkd.export.page.__file__).parent / "static").iterdir()}
    runtime = {name for name in files if name.startswith("runtime/")}
    assert set(files) == static | runtime | {"README.md", "student.json", student["file"], "mine.png"}
    assert {"runtime/LICENSE", "runtime/ThirdPartyNotices.txt"} < runtime
    card = ModelCard(files["README.md"].decode())
    assert (card.data.sdk, card.data.models, card.data.license) == ("static", ["user/student"], student["licence"])
    assert sha in card.text and hub.repositories["spaces", "user/page"].private
    assert f"pipeline(model='user/student', revision={sha!r}, trust_remote_code=True)" in output
    assert pages["public"][0] == 0 and not hub.repositories["spaces", "user/public_page"].private


def test_a_private_model_goes_into_the_open_only_on_request(pages, hub):
    code, _, error = pages["private_model"]
    assert code == 1 and "'user/open_page', which exists and is public, but the model is private" in error
    assert hub.files("spaces", "user/open_page") == {}


def test_a_page_needs_a_model_that_scores_speech_alone(pages, hub):
    assert pages["teacher"][0] == 1 and "'user/teacher', which is a cmkd_teacher, but must be" in pages["teacher"][2]
    assert pages["no_model"][0] == 1
    assert re.search(r"the Hub does not know user/absent.* \(404\)", pages["no_model"][2])
    assert ("spaces", "user/nothing") not in hub.repositories


@pytest.fixture
def space(pages, hub, tmp_path):
    """The page of a space in a browser, as the Hub serves it, large files included, from the files that were pushed.

    The microphone hears a tone.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")
    for name, content in hub.files("spaces", "user/page").items():
        (tmp_path / "page" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "page" / name).write_bytes(content)
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(2 * 48000) / 30) / 4, 48000, subtype="PCM_16")
    arguments = ["--no-sandbox", *microphone(tmp_path / "tone.wav")]
    requests, errors = [], []
    with served(tmp_path / "page", ISOLATED) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=arguments)
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        playwright.expect(page.locator("#status")).to_have_text("Ready.", timeout=120_000)
        assert page.evaluate("crossOriginIsolated")  # as it is with the headers of the card

        def says(text: str) -> None:
            playwright.expect(page.locator("#status")).to_contain_text(text, timeout=120_000)

        yield page, says
        browser.close()
    assert [url for url in requests if not url.startswith((address, f"blob:{address}"))] == []
    assert errors == []


def test_the_page_of_a_space_scores_as_the_pipeline_does(space, run, tmp_path):
    """A file that is long enough for windows; a click on one plays what is heard there."""
    page, says = space
    speech = (0.1 * np.random.default_rng(0).standard_normal(16000 * 35)).astype(np.float32)
    soundfile.write(tmp_path / "speech.wav", speech, 16000, subtype="FLOAT")
    expected = pipeline(model=str(run / "student"), trust_remote_code=True)(tmp_path / "speech.wav")["timeline"]
    page.set_input_files("#file", tmp_path / "speech.wav")
    says("scored in")
    page.evaluate(HEARD)
    page.locator("#chart .pane").nth(1).click()
    says("Playing 10.00 to 20.00 s")
    np.testing.assert_array_equal(np.float32(page.evaluate("heard[0]")), speech[160000:320000])
    page.locator("summary").click()
    rows = page.eval_on_selector_all("#timeline tbody tr", "rows => rows.map(row => row.innerText.split('\t'))")
    found = [[float(value) for value in row[:5]] for row in rows]
    assert found == [
        pytest.approx([window["start"], window["end"], *window["scores"].values()], abs=2e-3) for window in expected
    ]


def test_the_page_of_a_space_hears_the_microphone(space):
    """The tone that it hears, 48000 / 30 / 2 pi = 255 Hz, is what is scored and played."""
    page, says = space
    page.evaluate(HEARD)
    page.click("#record")
    says("Recording …")
    page.wait_for_timeout(1500)
    page.click("#record")
    says("scored in")
    assert page.locator("#name").inner_text() == "recording"
    page.locator("#chart .pane").click()
    says("Playing 0.00 to ")
    heard = np.array(page.evaluate("heard[0]"))
    strongest = np.argmax(np.abs(np.fft.rfft(heard))) / len(heard) * 16000
    assert len(heard) > 8000 and strongest == pytest.approx(48000 / 30 / 2 / np.pi, abs=4)


def test_the_page_of_a_space_says_what_it_cannot_score_and_goes_on(space, tmp_path):
    page, says = space
    (tmp_path / "broken.mp3").write_bytes(b"this is no sound" * 50)
    soundfile.write(tmp_path / "instant.wav", np.full(800, 0.1), 16000)
    soundfile.write(tmp_path / "whole.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    content = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    for name, message in (
        ("broken.mp3", "broken.mp3: the browser cannot read this as sound."),
        ("cut.wav", "cut.wav: it is truncated"),
        ("instant.wav", "instant.wav: audio of 0.050 s is too short: it must be at least 0.1 s long."),
    ):
        page.set_input_files("#file", tmp_path / name)
        says(message)
        assert page.locator("#answer").is_hidden()
        page.set_input_files("#file", tmp_path / "whole.wav")
        says("scored in")
        assert page.locator("#answer").is_visible()


def test_weights_that_are_no_safetensors_are_not_even_fetched(pulls, hub):
    (answer,) = pulls["online"]["user/pickled"]
    assert re.match(r"OSError: 'user/pickled' has no model.safetensors. .* reading a pickle can run any code", answer)
    assert not any("pytorch_model.bin" in request for request in hub.requests if request.startswith("GET"))


def test_the_metric_becomes_a_space(python, tmp_path):
    with LocalHub() as hub:
        commands = [["user/concordance_cc"], ["user/concordance_cc"], ["user/ccc"]]
        done = [
            python.run(module("cmkd"), "push-metric", *arguments, environment=hub.environment(tmp_path))
            for arguments in commands
        ]
        assert [result.returncode for result in done] == [0, 0, 1], done
        files = hub.files("spaces", "user/concordance_cc")
        repository = hub.repositories["spaces", "user/concordance_cc"]
        line = done[1].stdout.strip().splitlines()[-1].strip()
        code = f"import evaluate, json; print(json.dumps({line}.compute(predictions=[0, 1, 1], references=[0, 1, 2])))"
        loaded = in_process(python, code, environment=hub.environment(tmp_path / "elsewhere"), cwd=tmp_path)
    assert files == {path.name: path.read_bytes() for path in Path(CONCORDANCE_CC).iterdir() if path.is_file()}
    assert repository.private and f"revision={repository.branches['main']!r}" in done[1].stdout
    assert "must end in /concordance_cc" in done[2].stderr
    assert loaded == {"concordance_cc": pytest.approx(2 / 3), "per_dimension": [pytest.approx(2 / 3)], "rated": [3]}
