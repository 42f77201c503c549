"""Pushes to a Hub on localhost: whole or not at all, whatever fails, and loaded from there by remote code."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAT, ROOT, SAMPLE, call_command, photograph, run_without_nula
from hub import Commit, Fault, Hub
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from nula.data import DataSource
from nula.model_card.card import release_tag
from nula.publishing import hub as hub_module
from nula.publishing import push as push_command
from nula.publishing import run
from nula.publishing.hub import Target, pending_changes, push
from nula.publishing.integrity import PushRefused, check_payload, check_results
from nula.records.release import load_releases

NAME = "owner/nula"


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process takes for the Hub, with a token that may write, and with no waiting for it."""
    with Hub() as served:
        for name, value in (
            ("ENDPOINT", served.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts, ours and huggingface_hub's
        yield served


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """Of another process that takes `hub` for the Hub."""
    names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_write"}
    return {**os.environ, **names, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def small(tmp_path) -> Path:
    """Something that can be pushed in no time: a file of git and one of LFS."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return folder


@dataclass(frozen=True)
class Done:
    """What a push printed; `refusal` is why nothing was pushed."""

    output: str
    errors: str
    refusal: str

    @property
    def told(self) -> list[str]:
        """What it said of files, among progress bars."""
        return [line for line in self.errors.splitlines() if re.search(r"^\S.*  (kept|removed|keeps|has)", line)]


@pytest.fixture
def push_small(hub, small, monkeypatch, capsys) -> Callable[..., Done]:
    """Push `small`; its payload is not loaded, which is a test of its own."""
    monkeypatch.setattr(hub_module, "check_payload", lambda payload, golden: None)

    def push_it(name: str = NAME, tag: str | None = None, token: str = "hf_write", **options: bool) -> Done:
        monkeypatch.setenv("HF_TOKEN", token)
        url = refusal = ""
        try:
            url = push(small, small / "golden.npz", Target(name, tag, **options))
        except PushRefused as error:
            refusal = str(error)
        return Done(url, capsys.readouterr().err, refusal)

    return push_it


def test_a_push_is_one_commit_and_one_tag(hub, small, push_small):
    done = push_small(tag="v1.0.0")
    assert not done.refusal
    repository = hub.repositories[NAME]
    _, commit = repository.commits
    assert done.output == f"{hub.url}/{NAME}/commit/{commit.oid}"
    assert repository.tags == {"v1.0.0": commit.oid}
    assert not repository.private
    (small / "README.md").write_text("Another card.\n")
    (small / "config.json").write_text("{}")
    repository.commits[-1].files["figures/stale.png"] = b"of an older release"
    assert not push_small().refusal
    assert len(repository.commits) == 3
    files = {file.name: file.read_bytes() for file in small.iterdir()}
    assert repository.commits[-1].files == files | {".gitattributes": b"* -text\n"}
    again = push_small(tag="v1.0.0")
    assert again.refusal == "owner/nula has a tag v1.0.0 already; take the next version number."
    assert len(repository.commits) == 3


GATED = """---
license: apache-2.0
extra_gated_heading: Ask before you take it
extra_gated_fields:
  Name: text
thumbnail: https://example.com/a.png
base_model: somebody/else
tags: [theirs]
---
Their card.
"""


def test_what_is_not_ours_in_a_repository_stays_and_is_told_of(hub, small, push_small):
    assert not push_small().refusal
    repository = hub.repositories[NAME]
    theirs = {"LICENSE": b"mine", "notes/read me.txt": b"theirs", "README.md": GATED.encode()}
    repository.commits[-1].files |= theirs | {"old_nula.py": b"pass"}
    done = push_small(tag="v1.0.0")
    assert not done.refusal
    files = repository.commits[-1].files
    assert set(files) == {"README.md", "model.safetensors", ".gitattributes", "LICENSE", "notes/read me.txt"}
    assert all(files[name] == theirs[name] for name in ("LICENSE", "notes/read me.txt"))
    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict() == {
        "license": "mit",
        "extra_gated_heading": "Ask before you take it",
        "extra_gated_fields": {"Name": "text"},
        "thumbnail": "https://example.com/a.png",
    }
    assert card.text.strip() == "A card."
    assert done.told == [
        "README.md  keeps extra_gated_heading, extra_gated_fields, thumbnail",
        "README.md  has the license mit in place of apache-2.0",
        "LICENSE  kept",
        "notes/read me.txt  kept",
        "old_nula.py  removed",
    ]
    before = len(repository.commits)
    assert not push_small().refusal
    assert ModelCard(repository.commits[-1].files["README.md"].decode()).data.to_dict() == card.data.to_dict()
    assert len(repository.commits) == before  # as nothing differs


def test_what_is_not_ours_goes_where_that_is_asked_for(hub, small, push_small):
    assert not push_small().refusal
    repository = hub.repositories[NAME]
    repository.commits[-1].files |= {"LICENSE": b"mine", "a[1].txt": b"theirs", "a1.txt": b"theirs"}
    done = push_small(remove_others=True)
    assert done.told == ["LICENSE  removed", "a1.txt  removed", "a[1].txt  removed"]
    assert set(repository.commits[-1].files) == {"README.md", "model.safetensors", ".gitattributes"}


def test_a_card_there_that_cannot_be_read_is_not_dropped(hub, small, push_small):
    assert not push_small().refusal
    before = hub.repositories[NAME].commits[-1].files
    before["README.md"] = b"---\nextra_gated_prompt: [\n---\n"
    state = hub.state()
    refusal = push_small().refusal
    assert re.match(r"the head of README\.md in owner/nula cannot be read: .*; mend it on the Hub", refusal)
    assert hub.state() == state


def test_a_card_that_the_hub_refuses_is_told_why(hub, small, push_small):
    (small / "README.md").write_text("---\ndatasets:\n- my digits\n---\nA card.\n")
    message = 'the Hub refused: Invalid metadata in README.md. - "my digits" is no id of a repository.'
    assert push_small().refusal == message


def test_an_http_client_that_lacks_a_package_is_told_of(hub, push_small, monkeypatch):
    def fail(self: HfApi) -> None:
        raise ImportError("Using SOCKS proxy, but\nsocksio is not installed.")

    monkeypatch.setattr(HfApi, "whoami", fail)
    assert push_small().refusal == "the Hub cannot be reached: Using SOCKS proxy, but socksio is not installed."


def test_a_private_repository_is_seen_with_a_token_alone(hub, small, push_small):
    assert not push_small(private=True).refusal
    assert hub.repositories[NAME].private
    assert HfApi().model_info(NAME).private
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(NAME, token=False)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("commit/main", 500, times=99), "the Hub refused: .*500"),
        (Fault("commit/main", times=99), "the connection to the Hub failed: .* Run the same command again"),
        (Fault("validate-yaml", 502, times=99, body=b"<html>Bad gateway</html>"), "the connection to the Hub failed"),
        (Fault("objects/batch", 404), "the Hub refused: .*404"),
        (Fault("objects/batch", 429, times=99, headers={"Retry-After": "0"}), "429.* Run the same command again"),
        (Fault("PUT /lfs", times=99), "the connection to the Hub failed: .* Run the same command again"),
        (Fault("PUT /lfs", 500, times=99), "the Hub refused: .*500.* Run the same command again"),
        (Fault("PUT /lfs", 403, times=99), "the Hub refused: .*403.*make one with write access to owner/nula"),
        (
            Fault("preupload", 403, headers={"X-Error-Message": "Storage limit reached"}),
            "the Hub refused: .*Storage limit reached.*make one with write access to owner/nula",
        ),
        (Fault("whoami", 401), "The token may not write to owner/nula: make one with write access"),
        (Fault("commit/main", 412), "the Hub refused: .*412.*Somebody else pushed to owner/nula meanwhile"),
        (Fault("tag/", 409), "the Hub refused: .*409"),
        (Fault("resolve/", times=99), "the connection to the Hub failed: .* Run the same command again"),
        (Fault("resolve/", 500, times=99), "the Hub refused: .*500.* Run the same command again"),
    ],
    ids=[
        "500",
        "cut",
        "gateway",
        "404",
        "429",
        "LFS-cut",
        "LFS-500",
        "LFS-403",
        "403",
        "401",
        "412",
        "409",
        "card-cut",
        "card-500",
    ],
)
def test_what_fails_for_good_changes_nothing_and_can_be_run_again(hub, small, push_small, fault, message):
    assert not push_small().refusal
    (small / "model.safetensors").write_bytes(bytes(range(255, -1, -1)) * 100)
    before = hub.state()
    hub.faults = [fault]
    failed = push_small(tag="v2.0.0")
    assert re.search(message, failed.refusal), failed.refusal
    assert "Traceback" not in failed.errors
    if "tag" in fault.pattern:  # the commit is there, and its tag is not
        assert hub.state()[NAME][1] == {}
        assert len(hub.state()[NAME][0]) == 3
    else:
        assert hub.state() == before
    hub.faults = []
    assert not push_small(tag="v2.0.0").refusal
    assert len(hub.repositories[NAME].commits) == 3
    assert list(hub.repositories[NAME].tags) == ["v2.0.0"]


def test_what_fails_in_passing_is_tried_again(hub, small, push_small):
    hub.faults = [
        Fault("whoami", 503),
        Fault("repos/create", 500),
        Fault("validate-yaml", 502, body=b"<html>Bad gateway</html>"),
        Fault("preupload", 502),
        Fault("objects/batch", 429, headers={"Retry-After": "0"}),
        Fault("PUT /lfs"),
        Fault("resolve/", 503),
        Fault("commit/main", times=2),
        Fault("tag/", 429, headers={"RateLimit": '"api";r=0;t=1'}),
    ]
    done = push_small(tag="v1.0.0")
    assert not done.refusal
    assert "temporary failure of the Hub" in done.errors
    assert "trying again in 1 s" in done.errors
    assert [fault.seen > 0 for fault in hub.faults] == [True] * len(hub.faults)
    assert len(hub.repositories[NAME].commits) == 2
    assert list(hub.repositories[NAME].tags) == ["v1.0.0"]


def test_replies_that_are_lost_double_nothing(hub, small, push_small):
    hub.faults = [Fault("repos/create", -1), Fault("commit/main", -1), Fault("tag/", -1)]
    done = push_small(tag="v1.0.0")
    assert not done.refusal
    _, commit = hub.repositories[NAME].commits
    assert hub.repositories[NAME].tags == {"v1.0.0": commit.oid}
    assert commit.oid in done.output


def test_a_repository_that_moved_on_meanwhile_is_left_alone(hub, small, push_small):
    assert not push_small().refusal
    repository = hub.repositories[NAME]
    repository.commits.append(Commit("f" * 40, "somebody else's", {"theirs.txt": b"theirs"}))
    repository.stale = True  # whoever asks is told of the commit before
    (small / "README.md").write_text("Another card.\n")
    failed = push_small()
    assert "the Hub refused: " in failed.refusal
    assert [commit.oid for commit in repository.commits][-1] == "f" * 40


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "there is no Hub token; run `hf auth login` or set HF_TOKEN to one with write access."),
        ("hf_read", "the Hub token may only read; make one with write access and log in anew."),
        ("hf_fine", "the Hub token may not write to owner/nula; give it that right (repo.write) on the Hub."),
    ],
)
def test_a_token_that_will_not_do_is_refused_before_anything(hub, push_small, token, message):
    failed = push_small(token=token)
    assert failed.refusal == message
    assert hub.repositories == {}


def test_a_token_of_one_repository_writes_to_that(hub, small, push_small):
    assert not push_small("owner/mine", token="hf_fine").refusal


def test_a_repository_of_somebody_else_is_refused_before_anything(hub, small, push_small):
    failed = push_small("google/whatever")
    assert failed.refusal == "the Hub token is of owner, not of google; name a repository of theirs."
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("name", name, "names no repository") for name in ("nula", "a/b/c", "my model/x", "")),
        *(("tag", tag, "cannot be a tag") for tag in ("v1 0", "v1..0", "v1.lock", "-v1", "v1~")),
    ],
)
def test_a_name_or_tag_that_cannot_be_is_refused_before_anything(hub, push_small, option, value, message):
    failed = push_small(**{option: value})
    assert failed.refusal.startswith(f"{value!r} {message}")
    assert hub.requests == []


def test_what_is_to_be_private_does_not_go_to_a_public_repository(hub, small, push_small):
    assert not push_small().refusal
    before = hub.state()
    failed = push_small(private=True)
    assert failed.refusal.startswith("owner/nula is there already and public")
    assert hub.state() == before


def test_a_token_that_does_not_tell_its_role_is_tried(hub, small, push_small):
    assert not push_small(token="hf_oauth").refusal


def test_a_dry_run_says_what_would_change(hub, small, push_small):
    def dry_run() -> list[list[str]]:
        return [line.split() for line in pending_changes(small, Target(NAME))]

    files = [["29", "README.md", "new"], ["25,600", "model.safetensors", "new"]]
    assert dry_run() == [["repository:", "owner/nula,", "new"], *files, ["25,629", "in", "all"]]
    assert not push_small().refusal
    hub.repositories[NAME].commits[-1].files |= {"stale_nula.py": b"old", "LICENSE": b"mine"}
    (small / "README.md").write_text("Another card.\n")
    expected = [["14", "README.md", "changed"], ["25,600", "model.safetensors", "unchanged"]]
    expected += [["LICENSE", "kept"], ["stale_nula.py", "removed"]]
    assert dry_run() == [["repository:", "owner/nula,", "is", "there"], *expected, ["25,614", "in", "all"]]
    assert len(hub.repositories[NAME].commits) == 2


def call_push(*arguments: object) -> None:
    """Carry out `nula push` in this process."""
    call_command(push_command, *arguments)


def test_the_dry_run_of_a_release_changes_nothing(hub, tmp_path, capsys):
    options = ("--build", tmp_path / "build", "--releases", ROOT / "releases", "--tag", "v9.0.0")
    call_push("v1", NAME, *options, "--base", "owner/other-v0", "--private", "--dry-run")
    first, *files, _, tag = capsys.readouterr().out.splitlines()
    assert (first, tag) == ("repository: owner/nula, new, private", "tag: v9.0.0, new")
    assert {line.split()[1] for line in files} >= {"README.md", "config.json", "model.safetensors", "pipeline_nula.py"}
    assert hub.repositories == {}
    assert not [request for request in hub.requests if not request.startswith(("GET", "HEAD"))]
    card = (tmp_path / "build" / "nula-cifar10-robust-v1" / "README.md").read_text()
    assert "base_model: owner/other-v0\n" in card
    assert 'revision="v9.0.0"' in card


def test_the_dry_run_of_a_third_release(hub, three_releases, tmp_path, capsys):
    root = three_releases["v2"].folder.parent
    call_push("v2", "owner/x", "--releases", root, "--build", tmp_path / "build", "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("repository: owner/x, new", f"tag: {release_tag()}, new")
    card = (tmp_path / "build" / "nula-tiny" / "README.md").read_text()
    assert "base_model: owner/nula-cifar10-robust-v1\n" in card
    assert f'model="owner/x", revision="{release_tag()}"' in card
    assert hub.repositories == {}
    with pytest.raises(SystemExit, match="error: there is no release 'v3'; there are v0, v1, v2"):
        call_push("v3", "owner/x", "--releases", root)


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of the releases that may be spoiled."""
    return shutil.copytree(ROOT / "releases", tmp_path / "releases")


def test_results_of_other_weights_are_refused_before_anything(hub, copied, tmp_path):
    def refusal(match: str) -> None:
        with pytest.raises(PushRefused, match=match):
            check_results(load_releases(copied))

    results = copied / "v1" / "results"
    check_results(load_releases(copied))
    provenance = json.loads((results / "provenance.json").read_text())
    (results / "made_up.json").write_text(json.dumps({"provenance": provenance | {"weights_sha256": "0" * 64}}))
    refusal(r"made_up\.json was measured on other .*run `nula evaluate studies --model .*v1 --output .*results`")
    (results / "made_up.json").write_text(json.dumps({"provenance": provenance | {"start_weights_sha256": "0" * 64}}))
    refusal(r"made_up\.json was measured on other .*run `nula evaluate studies --model .*v1 --output .*results`")
    (results / "made_up.json").write_text(json.dumps({"provenance": provenance | {"definitions_version": 1}}))
    refusal(r"made_up\.json was measured by other definitions than today's")
    (results / "made_up.json").unlink()
    trained = copied / "v1" / "training.json"
    record = json.loads(trained.read_text())
    for field, message in (("weights_sha256", "copy both"), ("initial_weights_sha256", "fine-tune v1 from it")):
        trained.write_text(json.dumps(record | {field: "0" * 64}))
        refusal(message)
    trained.write_text(json.dumps(record))
    Image.new("RGB", (1, 1)).save(copied / "figures" / "path.png")
    refusal(r"path\.png was drawn for other weights; run `nula figures --releases .*releases`")
    (copied / "figures" / "path.png").unlink()
    (results / "provenance.json").write_text(json.dumps(provenance | {"weights_sha256": "0" * 64}))
    refusal(r"provenance\.json was measured .*run `nula evaluate table --model .*v1 --output .*results`")
    (results / "golden.npz").unlink()
    refusal(r"holds no golden\.npz")
    shutil.rmtree(results)
    with pytest.raises(SystemExit, match=r"no results; run `nula evaluate table --model .*v1 --output .*results`\.$"):
        call_push("v1", NAME, "--releases", copied, "--build", tmp_path / "build")
    assert hub.requests == []
    assert not (tmp_path / "build").exists()


def test_a_payload_is_refused_that_gives_other_logits_or_does_not_load(payload, tmp_path, monkeypatch):
    golden = ROOT / "releases" / "v1" / "results" / "golden.npz"
    check_payload(payload, golden)
    with np.load(golden) as stored:
        np.savez(tmp_path / "other.npz", images=stored["images"], logits=stored["logits"] + 0.1)
    monkeypatch.setattr(hub_module, "check_hub", lambda target: pytest.fail("the Hub was asked"))
    with pytest.raises(PushRefused, match=r"loaded by its remote code: logits differ by 0\.1"):
        push(payload, tmp_path / "other.npz", Target(NAME))
    broken = shutil.copytree(payload, tmp_path / "payload")
    (broken / "modeling_nula.py").write_text("raise RuntimeError('broken on purpose')\n")
    with pytest.raises(PushRefused, match="loaded by its remote code: RuntimeError: broken on purpose"):
        push(broken, golden, Target(NAME))


CLASSIFY = """
from transformers import pipeline
image, *models = sys.argv[1:]
for name, revision in zip(models[::2], models[1::2]):
    answers = pipeline("image-classification", model=name, trust_remote_code=True, revision=revision)(image)
    print([(answer["label"], round(answer["score"], 5)) for answer in answers])
"""
FINE_TUNE = """
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
name, revision, theirs = sys.argv[1:]
model, processor = (kind.from_pretrained(name, trust_remote_code=True, revision=revision)
                    for kind in (AutoModelForImageClassification, AutoImageProcessor))
model.train()
torch.manual_seed(0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(2):
    model(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    optimizer.step()
model.push_to_hub(theirs)
processor.push_to_hub(theirs)
"""


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_release_is_pulled_at_its_commit_and_pushed_on(hub, environment, monkeypatch, tmp_path, version, capsys):
    repository = f"nula-cifar10-robust-{version}"
    name, build = f"owner/{repository}", tmp_path / "build"
    call_push(version, name, "--tag", "v1.0.0", "--releases", ROOT / "releases", "--build", build)
    _, commit = hub.repositories[name].commits
    assert capsys.readouterr().out.strip() == f"{hub.url}/{name}/commit/{commit.oid}"
    assert hub.repositories[name].tags == {"v1.0.0": commit.oid}
    later = {"config.json": b"not JSON", "model.safetensors": b"none"}  # what comes later must not matter
    later |= {file: b"raise RuntimeError('of a later commit')" for file in commit.files if file.endswith(".py")}
    spoiled = commit.files | later
    hub.repositories[name].commits.append(Commit("e" * 40, "spoiled", spoiled))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    pulled, local = run_without_nula(CLASSIFY, tmp_path, CAT, name, commit.oid, build / repository, "main").splitlines()
    assert pulled == local
    assert "('cat', " in pulled
    if version == "v1":
        run_without_nula(FINE_TUNE, tmp_path, name, commit.oid, "owner/theirs")
        [answers] = run_without_nula(CLASSIFY, tmp_path, CAT, "owner/theirs", "main").splitlines()
        assert answers.startswith("[('")
        assert answers != pulled


def test_training_scripts_push_what_they_train(hub, environment, tmp_path):
    tiny = ["--recipe", "batch_size=64", "--max_steps", "1", "--dataset", str(SAMPLE)]

    def train(script: str, output_dir: Path, *arguments: str):
        command = [
            sys.executable,
            f"train/{script}",
            *tiny,
            "--output_dir",
            str(output_dir),
            "--push_to_hub",
            *arguments,
        ]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    net = ["--config", "stem_channels=4", "hidden_sizes=[8,8]", "depths=[0,0]"]
    done = train("train_v0.py", tmp_path / "v0", *net)
    assert "error: --push_to_hub needs --hub_model_id owner/name." in done.stderr
    done = train("train_v0.py", tmp_path / "v0", *net, "--hub_model_id", "owner/mine-v0", "--hub_tag", "v 1")
    assert "error: --push_to_hub: 'v 1' cannot be a tag" in done.stderr
    hub.faults = [Fault("whoami", 401)]
    done = train("train_v0.py", tmp_path / "v0", *net, "--hub_model_id", "owner/mine-v0")
    assert "error: --push_to_hub: the Hub refused: Invalid user token." in done.stderr
    assert "The token may not write to owner/mine-v0" in done.stderr
    assert not (tmp_path / "v0").exists()
    hub.faults = [Fault("commit/main", 403)]
    done = train("train_v0.py", tmp_path / "v0", *net, "--hub_model_id", "owner/mine-v0")
    assert "the same command with --resume pushes" in done.stderr
    measured = (tmp_path / "v0" / "results" / "predictions.npz").stat().st_mtime_ns
    done = train("train_v0.py", tmp_path / "v0", *net, "--hub_model_id", "owner/mine-v0", "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "v0" / "results" / "predictions.npz").stat().st_mtime_ns == measured  # not measured again
    _, commit = hub.repositories["owner/mine-v0"].commits
    assert done.stdout.strip().endswith(f"{hub.url}/owner/mine-v0/commit/{commit.oid}")
    assert "| perturbation | v0 |\n" in commit.files["README.md"].decode()  # of the sample nothing is published

    hub_options = ["--hub_model_id", "owner/mine-v1", "--hub_tag", "v1.0.0", "--hub_private_repo"]
    (tmp_path / "v0" / "results" / "noise").mkdir()  # a study of whatever weights, which the card must not show
    done = train("finetune_v1.py", tmp_path / "v1", "--v0", str(tmp_path / "v0"), *hub_options)
    assert done.returncode == 0, done.stderr
    pushed = hub.repositories["owner/mine-v1"]
    assert pushed.private
    assert pushed.tags == {"v1.0.0": pushed.commits[-1].oid}
    card = pushed.commits[-1].files["README.md"].decode()
    assert 'revision="v1.0.0"' in card
    assert "| perturbation | v0 | v1 | v1 − v0 |\n" in card


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train_v0.py", ["--image_size", "48", "--config", "stem_channels=4", "hidden_sizes=[8,8]", "depths=[0,0]"]),
        ("finetune_v1.py", ["--v0", str(ROOT / "releases" / "v1")]),
    ],
)
def test_a_net_of_other_classes_answers_with_their_names_from_the_hub(hub, environment, tmp_path, script, options):
    """Trained on three classes of pictures of mixed sizes and modes, pushed, and loaded as a stranger would.

    The data set has a name that no Hub would take, and lies, as the run does, in a folder that is nobody's business.
    """
    secret = tmp_path / "private place"
    for place, (name, mode) in enumerate((("cat", "RGB"), ("hot dog", "L"), ("polar-bear", "P"))):
        for split, size in (("train", (33 + place, 60)), ("test", (50, 41 + place))):
            folder = secret / "my pets" / split / name
            folder.mkdir(parents=True)
            for number in range(12):
                picture = Image.fromarray(np.roll(photograph(*size), 7 * number, axis=0)).convert(mode)
                picture.save(folder / f"{number}.png")
    command = [sys.executable, f"train/{script}", "--dataset", str(secret / "my pets"), "--max_steps", "2", *options]
    command += ["--output_dir", str(secret / "run"), "--push_to_hub", "--hub_model_id", "owner/pets"]
    command += ["--recipe", "batch_size=32"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["owner/pets"].commits[-1].files
    card = files["README.md"].decode()
    assert "datasets" not in ModelCard(card).data.to_dict()
    assert "images of my pets" in " ".join(card.split())
    records = {str(file): file.read_bytes() for file in (secret / "run").rglob("*.json")}
    assert {"training.json", "provenance.json"} <= {Path(name).name for name in records}
    for name, content in (files | records).items():
        assert not re.search(rb"private.place|" + re.escape(str(tmp_path).encode()), content), name
    assert "cifar" not in card.partition("## Citation")[0].lower()
    assert "| Clean | " in card
    code = """
from transformers import pipeline
classifier = pipeline("image-classification", model="owner/pets", trust_remote_code=True)
print(*sorted(answer["label"] for answer in classifier(sys.argv[1])), sep=", ")
print(classifier.image_processor.size["height"])
"""
    guard = "import sys\nsys.modules['nula'] = None\n"
    picture = secret / "my pets" / "test" / "hot dog" / "3.png"
    done = subprocess.run(
        [sys.executable, "-c", guard + code, str(picture)],
        cwd=tmp_path,
        env=environment | {"HF_HOME": str(tmp_path / "fresh")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["cat, hot dog, polar-bear", "48" if "--image_size" in options else "32"]


@pytest.fixture
def pushed(releases, monkeypatch) -> dict[str, object]:
    """What `publish` pushes, which goes nowhere; v0's table is there for whatever Hub id a run started from."""
    seen: dict[str, object] = {"measured": []}

    def results_of(evaluation: run.Evaluation, model: str, *folders: Path) -> run.TableAlone:
        seen["measured"].append(model)
        return run.TableAlone(folders[0] if folders[0].is_dir() else releases["v0"].results.folder)

    def note(payload: Path, golden: Path, target: Target) -> str:
        seen.update(card=(payload / "README.md").read_text(), golden=golden, target=target)
        return "a URL"

    monkeypatch.setattr(run.Evaluation, "results_of", results_of)
    monkeypatch.setattr(run, "push", note)
    return seen


def test_a_run_shows_its_table_beside_that_of_a_hub_id_and_no_study(pushed, copied):
    target, parent = Target("owner/mine", "v3.0.0"), "MamaPearl/nula-cifar10-robust-v0"
    folder = copied / "v1"
    assert run.publish(folder, DataSource(), target, torch.device("cpu"), parent) == "a URL"
    assert pushed["measured"] == [str(folder), parent]
    assert (pushed["golden"], pushed["target"]) == (folder / "results" / "golden.npz", target)
    card = pushed["card"]
    assert f"base_model: {parent}\n" in card
    assert 'model="owner/mine", revision="v3.0.0"' in card
    assert "| perturbation | v0 | v1 | published v1 | v1 − v0 |\n" in card
    assert "| perturbation | ECE v0 | ECE v1 |" in card
    for absent in ("Common corruptions<", "## Claims", "Pictures<", "adversary"):
        assert absent not in card


def test_a_run_from_a_folder_of_its_own_name_is_told_from_it(pushed, copied):
    file = copied / "v1" / "release.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"published": None}))
    run.publish(copied / "v1", DataSource(), Target("owner/mine"), torch.device("cpu"), str(ROOT / "releases" / "v1"))
    assert "| perturbation | parent | published parent | v1 | v1 − parent |\n" in pushed["card"]
    assert "base_model" not in pushed["card"]  # a folder is on no Hub


def test_a_run_with_a_new_head_is_not_compared_with_what_knows_other_classes(pushed, copied):
    training = copied / "v1" / "training.json"
    training.write_text(json.dumps(json.loads(training.read_text()) | {"head": "new"}))
    run.publish(copied / "v1", DataSource(), Target("owner/mine"), torch.device("cpu"), "somebody/theirs")
    assert pushed["measured"] == [str(copied / "v1")]
    assert "| perturbation | v1 | published v1 |\n" in pushed["card"]
    assert "base_model: somebody/theirs\n" in pushed["card"]


def test_a_table_is_measured_once(copied, monkeypatch):
    commands = []
    monkeypatch.setattr(run.subprocess, "run", lambda command, **options: commands.append(command[1:]))
    fingerprint = json.loads((copied / "v1" / "results" / "provenance.json").read_text())["dataset"]["sha256"]
    monkeypatch.setattr(run.Evaluation, "fingerprint", fingerprint)
    source = DataSource(dataset="mine", label_column="kind")
    evaluation = run.Evaluation(source, torch.device("cpu"))
    folder, other = copied / "v1", copied / "other"
    assert evaluation.results_of(str(folder), other, folder / "results").folder == folder / "results"
    assert commands == []
    (folder / "results" / "golden.npz").unlink()
    assert evaluation.results_of(str(folder), folder / "results", other).folder == other
    options = ["--dataset", "mine", "--label_column", "kind", "--cpu"]
    assert commands == [
        ["-m", "nula", "evaluate", "table", "--model", str(folder), "--output", str(other), "--overwrite", *options]
    ]
