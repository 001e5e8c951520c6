"""The server against the stock clients alone: what they push they get back, and its refusals are those they know."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from hub_server import READER, STRANGER, WRITER, Hub

# Each function below runs in the process of the fixture `client`.


def make_repo(token: str, name: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(token=token).create_repo(name, private=True, exist_ok=True)
        HfApi(token=token).auth_check(name, write=True)
    except HfHubHTTPError as error:
        return f"{type(error).__name__} {error.response.status_code}"
    return "may write"


def send_folder(folder: str, name: str) -> list[str]:
    """Push a folder twice, go on from a commit that is no longer the last, push to a branch; returns commit titles."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    api.create_repo(name, private=True)
    first = api.upload_folder(repo_id=name, folder_path=folder, commit_message="all").oid
    api.upload_folder(repo_id=name, folder_path=folder, commit_message="again")
    api.upload_file(repo_id=name, path_or_fileobj=b"new", path_in_repo="b.txt", commit_message="b")
    operations = [CommitOperationAdd("b.txt", b"newer")]
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(name, operations, commit_message="late", parent_commit=first)
    assert caught.value.response.status_code == 412
    api.create_branch(name, branch="side", revision=first)
    api.create_branch(name, branch="side", exist_ok=True)
    api.upload_file(repo_id=name, path_or_fileobj=b"side", path_in_repo="b.txt", commit_message="c", revision="side")
    assert {branch.name for branch in api.list_repo_refs(name).branches} == {"main", "side"}
    return [commit.title for commit in api.list_repo_commits(name)]


def fetch_folder(name: str, revision: str) -> dict[str, bytes]:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, revision=revision))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def send_dataset(name: str) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"id": list(range(30)), "text": [f"row {number} 中文" for number in range(30)]})
    rows.push_to_hub(name, "one", num_shards=3, private=True)
    DatasetDict({"train": rows, "test": rows.select(range(4))}).push_to_hub(name, "two")


def fetch_dataset(name: str, config: str, split: str, streaming: bool) -> list[dict]:
    from datasets import load_dataset

    return list(load_dataset(name, config, split=split, streaming=streaming))


def send_model(folder: str, name: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.save_model(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.push_to_hub(name, private=True)
    tokenizer.push_to_hub(name)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(name), LoraConfig(r=2, init_lora_weights=False))
    model.push_to_hub(name + "-adapter", private=True)
    model.merge_and_unload().save_pretrained(folder + "-merged")
    tokenizer.save_pretrained(folder + "-merged")


def adapter_logits(name: str) -> list[float]:
    """What the adapter says, on the base that its own config names."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    asked = [{"role": "user", "content": "What is 2 + 3?"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(inputs["input_ids"]).logits[0, -1].tolist()


def train_with_trl(model: str, folder: str, name: str, token: str | None) -> None:
    import trl
    from datasets import Dataset

    shared = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "bf16": False, "report_to": []}
    hub = {"push_to_hub": True, "hub_model_id": name, "hub_strategy": "all_checkpoints", "hub_private_repo": True}
    config = trl.SFTConfig(folder, **shared, **hub, hub_token=token, per_device_train_batch_size=1, max_length=32)
    rows = Dataset.from_dict({"text": ["What is 2 + 3? It is 5."] * 4})
    trl.SFTTrainer(model, args=config, train_dataset=rows).train()


def send_rows(name: str) -> int:
    from datasets import Dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        Dataset.from_dict({"id": [1]}).push_to_hub(name)
    except HfHubHTTPError as error:
        return error.response.status_code
    return 200


def send_file(name: str, content: bytes) -> str:
    import time

    from huggingface_hub import HfApi

    waits: list[float] = []
    sleep, time.sleep = time.sleep, waits.append
    try:
        HfApi().upload_file(repo_id=name, path_or_fileobj=content, path_in_repo="a.safetensors")
    except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        time.sleep = sleep
    return f"waited {sum(waits):.0f} s"


def push_card(name: str, header: str) -> str:
    from huggingface_hub import HfApi

    try:
        HfApi().upload_file(repo_id=name, path_or_fileobj=f"---\n{header}\n---\n".encode(), path_in_repo="README.md")
    except ValueError as error:
        return str(error)
    return "accepted"


def test_tokens_open_what_is_theirs(hub: Hub, client: Callable) -> None:
    assert client(make_repo, WRITER, "me/a") == "may write"
    assert client(make_repo, WRITER, "me/a") == "may write"
    assert client(make_repo, READER, "me/a") == "HfHubHTTPError 403"
    assert client(make_repo, STRANGER, "me/a") == "HfHubHTTPError 403"
    assert client(make_repo, READER, "me/other") == "HfHubHTTPError 403"
    assert client(make_repo, "hf_wrong", "me/a") == "HfHubHTTPError 401"
    assert hub.repo("models", "me/a").private


def test_a_folder_comes_back_byte_by_byte(hub: Hub, client: Callable, tmp_path: Path) -> None:
    content = {"a.safetensors": b"\0" * 100_000, "b.txt": "中".encode(), "sub/c.json": b"{}", "sub/d.bin": b"d"}
    for name, raw in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    assert client(send_folder, str(tmp_path), "me/folder") == ["b", "all", "initial commit"]
    assert hub.count("upload") == 2
    for revision, changed in (("main", b"new"), ("side", b"side")):
        found = client(fetch_folder, "me/folder", revision)
        del found[".gitattributes"]
        assert found == content | {"b.txt": changed}


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_comes_back_row_by_row(hub: Hub, client: Callable, streaming: bool) -> None:
    if ("datasets", "me/rows") not in hub.repos:
        client(send_dataset, "me/rows")
    rows = [{"id": number, "text": f"row {number} 中文"} for number in range(30)]
    assert client(fetch_dataset, "me/rows", "one", "train", streaming) == rows
    assert client(fetch_dataset, "me/rows", "two", "train", streaming) == rows
    assert client(fetch_dataset, "me/rows", "two", "test", streaming) == rows[:4]


@pytest.mark.slow
def test_a_model_and_an_adapter_answer_as_before(hub: Hub, client: Callable, tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    client(send_model, folder, "me/model")
    assert client(tiny.logits, "me/model") == client(tiny.logits, folder)
    merged = client(tiny.logits, folder + "-merged")
    assert client(adapter_logits, "me/model-adapter") == pytest.approx(merged, abs=1e-5)
    assert merged != client(tiny.logits, folder)


@pytest.mark.slow
def test_trl_pushes_its_checkpoints_and_with_them_a_token_that_it_was_given(
    hub: Hub, client: Callable, tmp_path: Path
) -> None:
    """What our own push is for: the token is in the pickle that TRL uploads."""
    client(tiny.save_model, str(tmp_path / "model"))
    client(train_with_trl, str(tmp_path / "model"), str(tmp_path / "run"), "me/trl", WRITER)
    files = hub.files("models", "me/trl")
    assert {"model.safetensors", "README.md", "training_args.bin", "checkpoint-1/model.safetensors"} <= files.keys()
    (tmp_path / "args.bin").write_bytes(files["training_args.bin"])
    with zipfile.ZipFile(tmp_path / "args.bin") as archive:
        assert any(WRITER.encode() in archive.read(name) for name in archive.namelist())


@pytest.mark.slow
@pytest.mark.parametrize(("status", "seen"), [(401, 401), (403, 403), (409, 409), (412, 412)])
def test_datasets_own_push_gives_up_at_once(hub: Hub, client: Callable, status: int, seen: int) -> None:
    """Also where it means to try again: the reason for our own retry."""
    hub.fail("commit", status)
    assert client(send_rows, f"me/refused-{status}") == seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "fault", "end"),
    [
        ("upload", "cut", "waited 1 s"),
        ("upload", 500, "waited 1 s"),
        ("upload", 429, "waited 8 s"),  # the 7 of Retry-After and one more
        ("batch", 429, "waited 8 s"),
        ("upload", "slow", "waited 0 s"),
        ("commit", "slow", "waited 0 s"),
        ("commit", "lost", "RemoteProtocolError: Server disconnected without sending a response."),
        ("preupload", 403, "HfHubHTTPError: 403 Forbidden"),
        ("commit", 404, "RepositoryNotFoundError: 404 Client Error"),
        ("commit", 412, "HfHubHTTPError: Client error '412"),
    ],
)
def test_a_stock_client_meets_each_fault_as_on_the_real_hub(
    hub: Hub, client: Callable, place: str, fault: str | int, end: str
) -> None:
    client(make_repo, WRITER, "me/faulty")
    hub.fail(place, fault)
    assert client(send_file, "me/faulty", f"{place}{fault}".encode()).lstrip().startswith(end)
    assert hub.faults == []


def test_a_card_with_a_broken_header_is_refused(hub: Hub, client: Callable) -> None:
    client(make_repo, WRITER, "me/carded")
    assert client(push_card, "me/carded", "license: mit") == "accepted"
    assert "license" in client(push_card, "me/carded", "license: {a: b}")
