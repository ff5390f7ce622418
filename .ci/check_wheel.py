"""Checks an installed wheel from outside the checkout: `cd /tmp && python path/to/check_wheel.py path/to/the.whl`.

The release workflow runs it in a fresh environment, and the tests on an unpacked wheel. It says what it found and ends
with exit code 1 where something is missing.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REMOTE_FILES = (
    "audio_cmkd",
    "configuration_cmkd",
    "modeling_cmkd",
    "pipeline_cmkd",
    "speech_encoder_cmkd",
    "windows_cmkd",
)
TOP_LEVEL = {"cmkd", *(f"{name}.py" for name in REMOTE_FILES)}
"""What a wheel may put into site-packages, `cmkd-VERSION.dist-info` aside; see pyproject.toml."""


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    others = {name for name in names - TOP_LEVEL if not (name.startswith("cmkd-") and name.endswith(".dist-info"))}
    # The list may grow by remote files, whose names end in _cmkd; by nothing else.
    others = {name for name in others if not name.endswith("_cmkd.py")}
    check(not others, f"the wheel puts {sorted(others)} into site-packages")
    check(names >= TOP_LEVEL, f"the wheel lacks {sorted(TOP_LEVEL - names)}")

    import torch
    from transformers import AutoModel, HubertConfig

    import cmkd
    from cmkd import CMKDStudentConfig, CMKDStudentModel, CMKDTeacherConfig, CMKDTeacherModel, SpeechEmotionPipeline
    from cmkd.hub.cards import TEMPLATES, metric_card, space_card

    package = Path(cmkd.__file__).parent
    check(wheel.name.startswith(f"cmkd-{cmkd.__version__}-"), f"{wheel.name} says that it is {cmkd.__version__}")
    check((package / "py.typed").is_file(), "py.typed is missing")
    check(package / "hub_cards" == TEMPLATES, f"the templates are taken from {TEMPLATES}")
    check("user/student" in space_card("user/student", "0123abc", None), "the card of a Space names no model")
    check(
        "CCC" in metric_card("CCC", "How well two agree.", "predictions", "@misc{}"),
        "the card of the metric does not say what it is",
    )
    static = {path.name for path in (package / "export/static").iterdir()}
    check(static >= {"index.html", "page.js"}, f"the page without a server has {sorted(static)} only")
    check(SpeechEmotionPipeline.__module__ == "pipeline_cmkd", "the pipeline is of another module")
    check(CMKDTeacherModel.config_class is CMKDTeacherConfig, "the teacher has another configuration")

    for command in (["-m", "cmkd", "--help"], ["-m", "cmkd.train_distill", "--help"]):
        said = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
        check(said.returncode == 0 and said.stdout, f"python {' '.join(command)}: {said.stderr}")

    speech = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    student = CMKDStudentModel(CMKDStudentConfig(speech_config=speech.to_dict(), num_trainable_layers=1)).eval()
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        files = {path.name for path in Path(folder).iterdir()}
        code = {name for name in names if name.endswith("_cmkd.py") and name != "pipeline_cmkd.py"}
        check(code - {"audio_cmkd.py", "windows_cmkd.py"} <= files, f"the checkpoint has {sorted(files)} only")
        loaded = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    waves = torch.linspace(-1, 1, 4000)[None]
    with torch.no_grad():
        expected, found = student(input_values=waves).logits, loaded(input_values=waves).logits
    check(found.shape == (1, 3), f"the student gives logits of shape {tuple(found.shape)}")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    print(f"{wheel.name}: complete, and in nobody's way")


def check(is_so: object, otherwise: str) -> None:
    if not is_so:
        sys.exit(f"check_wheel: {otherwise}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
