"""Models from the Hub: the files that a conversion needs, of one revision, in the Hub's own cache.

huggingface_hub gives the endpoint, the token, the cache's place, offline mode and the requests; its variables
(HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE) hold here as they do everywhere. Downloads are our own, since
its own begin again after a killed process:

    blobs/<hash>.millrace.incomplete    what has come so far; the next pull asks for the rest
    blobs/<hash>                        a whole file, once its content has that hash
    snapshots/<commit>/<name>           a link to it
    refs/<revision>                     the commit that a branch or tag was last
"""

import fcntl
import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from millrace import models, pooling
from millrace.columns import size

ALWAYS = ("config.json", "tokenizer.json", "tokenizer_config.json")
PERHAPS = (
    "generation_config.json",
    "quantize_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    models.MODULES,
    pooling.SETTINGS,
    pooling.LENGTH,
    "1_Pooling/config.json",
    "LICENSE",
)
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

TEMPLATE = re.compile(rf"{models.TEMPLATES}/\w[\w.-]*\.jinja", re.ASCII)
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a small file; SHA-256 of a large one
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
SLACK = 64 << 20
"""Bytes that a disk should keep beside what is asked of it."""


@dataclass(frozen=True)
class File:
    name: str
    size: int
    hash: str


@dataclass(frozen=True)
class Pulled:
    folder: Path
    commit: str


class Repo:
    """One revision of a repository. What is wrong with it or on the way is a ValueError that says so."""

    def __init__(self, given: str):
        """`given`: org/repo or org/repo@revision."""
        self.id, _, revision = given.partition("@")
        self.revision = revision or "main"
        if not models.NAME.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is not the name of a repository: org/repo, or org/repo@revision")
        if not REVISION.fullmatch(self.revision) or ".." in self.revision:
            raise ValueError(f"{self.revision!r} is not a revision: a branch, a tag or a commit")
        folder = repo_folder_name(repo_id=self.id, repo_type="model")
        self._cache = Path(constants.HF_HUB_CACHE) / folder

    def pull(self, more: float = 0, beside: Path | None = None) -> Pulled:
        """The snapshot's folder, if there is room for it, and for `more` times its weights in `beside`."""
        if constants.is_offline_mode():
            return self._cached()
        try:
            return self._pull(more, beside)
        except errors.GatedRepoError:
            page = f"{constants.ENDPOINT}/{self.id}"
            raise ValueError(
                f"{self.id} is gated: accept its terms at {page}, and set HF_TOKEN to a token of yours"
            ) from None
        except errors.RepositoryNotFoundError:
            token = "this HF_TOKEN may not see it" if huggingface_hub.get_token() else "HF_TOKEN is not set"
            raise ValueError(
                f"{self.id} is not at {constants.ENDPOINT}, or it is private and {token}"
            ) from None
        except errors.RevisionNotFoundError:
            raise ValueError(f"{self.id} has no revision {self.revision!r}") from None
        except (ValueError, OSError):
            raise
        except Exception as error:  # of the HTTP library, whose kinds are not ours to know
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"{constants.ENDPOINT}: {type(error).__name__}: {first}") from error

    def _pull(self, more: float, beside: Path | None) -> Pulled:
        info = huggingface_hub.HfApi().model_info(self.id, revision=self.revision, files_metadata=True)
        commit = info.sha or ""
        if not HASH.fullmatch(commit):
            raise ValueError(f"{constants.ENDPOINT} names the commit {commit!r}, which is not one")
        known = {each.rfilename: each for each in info.siblings or []}
        for name in ALWAYS:
            if name not in known:
                raise ValueError(f"{self.id} has no {name}: not a model that can be served here")
        small = [self._file(known[name]) for name in (*ALWAYS, *PERHAPS, INDEX) if name in known]
        small += [self._file(told) for name, told in known.items() if TEMPLATE.fullmatch(name)]
        for file in small:
            self._fetch(file, commit)
        shards = [self._file(known[name]) for name in self._shards(set(known), commit)]
        missing = [file for file in shards if not (self._cache / "blobs" / file.hash).exists()]
        self._check_room(missing, sum(file.size for file in shards) * more, beside)
        for file in shards:
            self._fetch(file, commit)
        if commit != self.revision:
            ref = self._cache / "refs" / self.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
        return Pulled(self._snapshot(commit), commit)

    def _file(self, told: RepoSibling) -> File:
        """A file as the Hub tells of it; what it tells becomes the name of a file here."""
        known = told.lfs.sha256 if told.lfs else told.blob_id
        count = told.lfs.size if told.lfs else told.size
        if not known or not HASH.fullmatch(known) or count is None or count < 0:
            raise ValueError(f"{self.id}: the Hub tells no hash or size of {told.rfilename}")
        return File(told.rfilename, count, known)

    def _shards(self, known: set[str], commit: str) -> list[str]:
        if INDEX not in known:
            if WEIGHTS not in known:
                raise ValueError(f"{self.id} has no {WEIGHTS}: weights in another form are not read")
            return [WEIGHTS]
        folder = self._snapshot(commit)
        index = models.read_json(folder, INDEX).get("weight_map")
        names = sorted(set(index.values())) if isinstance(index, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self.id}: {INDEX} is not an index of shards")
        for name in names:
            models.inside(folder, name)
            if name not in known:
                raise ValueError(f"{self.id}: {INDEX} names {name}, which is not there")
        return names

    def _check_room(self, files: list[File], more: float, beside: Path | None) -> None:
        """Before a long download: on each disk for what will come to it."""
        wanted = {self._cache: float(sum(file.size for file in files))}
        if beside:
            wanted[beside] = more
        disks: dict[int, tuple[Path, float]] = {}
        for path, count in wanted.items():
            there = next(each for each in (path, *path.parents) if each.exists())
            disk = there.stat().st_dev
            disks[disk] = there, disks.get(disk, (there, 0.0))[1] + count
        for path, count in disks.values():
            free = shutil.disk_usage(path).free
            if count + SLACK > free:
                raise ValueError(f"{self.id} needs {size(int(count))} in {path}, where {size(free)} are free")

    def _fetch(self, file: File, commit: str) -> None:
        blob = self._cache / "blobs" / file.hash
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            partial = blob.with_name(f"{file.hash}.millrace.incomplete")
            with partial.open("ab+") as out:
                fcntl.flock(out, fcntl.LOCK_EX)  # of two pulls one downloads, and the other finds it done
                if not blob.exists():
                    self._download(file, commit, out)
                    partial.replace(blob)
                else:
                    partial.unlink(missing_ok=True)
        link = self._snapshot(commit) / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            up = "../" * (2 + file.name.count("/"))
            link.symlink_to(f"{up}blobs/{file.hash}")

    def _download(self, file: File, commit: str, out: BinaryIO) -> None:
        """All of it that has not come yet; it stays only if its content has the hash that the Hub told."""
        have = out.seek(0, 2)
        if have > file.size:
            have = out.truncate(0)
        headers = build_hf_headers(library_name="millrace")
        headers["Accept-Encoding"] = "identity"  # a range of compressed bytes is of other ones
        url = huggingface_hub.hf_hub_url(self.id, file.name, revision=commit)
        http_get(
            url, out, resume_size=have, headers=headers, expected_size=file.size, displayed_filename=file.name
        )
        out.flush()
        found = _hash(out, file)
        if found != file.hash:
            out.truncate(0)  # the next attempt begins anew
            raise ValueError(f"{self.id}: {file.name} came with the hash {found}, not {file.hash}")

    def _snapshot(self, commit: str) -> Path:
        return self._cache / "snapshots" / commit

    def _cached(self) -> Pulled:
        """What an earlier pull, or another program, has brought."""
        commit = self.revision
        ref = self._cache / "refs" / self.revision
        if ref.is_file():
            commit = ref.read_text().strip()
        folder = self._snapshot(commit)
        if not HASH.fullmatch(commit) or not folder.is_dir():
            raise ValueError(f"HF_HUB_OFFLINE is set, and {self.id}@{self.revision} is not in {self._cache}")
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for name in (*ALWAYS, *self._shards(there, commit)):
            if name not in there:
                raise ValueError(f"HF_HUB_OFFLINE is set, and {name} is not in {folder}")
        return Pulled(folder, commit)


def _hash(content: BinaryIO, file: File) -> str:
    """As the Hub names it: SHA-256 of a large file, git's of a small one."""
    known = hashlib.sha256()
    if len(file.hash) == 40:
        known = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    content.seek(0)
    while piece := content.read(1 << 22):
        known.update(piece)
    return known.hexdigest()
