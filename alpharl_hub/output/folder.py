"""The folder that a run leaves behind: checked first, made elsewhere, moved into place at the end.

Nothing appears at the output's name before everything is there. Work goes on in a folder beside it
(or where --work-dir says), which an interrupted run leaves for the next start.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from pathlib import Path

from alpharl_hub.errors import ResourceError, WriteError
from alpharl_hub.manifest import MANIFEST_NAME
from alpharl_hub.output.read_back import drop_cached
from alpharl_hub.output.shards import sync_folder, write_error

_SPARE_BYTES = 16 << 20


def check_output(output: Path, overwrite: bool, work_dir: Path | None = None) -> None:
    """Refuse an output that is not empty, before anything is read.

    Only what this tool has made is ever replaced: an output named like the run by mistake must not
    cost the run.

    Raises:
        WriteError: it exists and is no empty folder, and is not ours or was not to be replaced; or
            unfinished work is to lie in what is swapped as a whole.
    """
    if work_dir is not None and Path(os.path.realpath(work_dir)).is_relative_to(
        os.path.realpath(output)
    ):
        raise WriteError(f"--work-dir {work_dir}: lies in the output; choose another folder")
    if output.is_dir():
        is_ours = (output / MANIFEST_NAME).is_file()
        if any(output.iterdir()) and not (overwrite and is_ours):
            advice = "or --overwrite to replace it" if is_ours else "this tool did not make it"
            raise WriteError(f"{output}: not empty; choose another folder, {advice}")
    elif output.exists():
        raise WriteError(f"{output}: exists and is no folder; choose another name")


def work_folder_beside(output: Path) -> Path:
    """Return where a run with this output works."""
    real = Path(os.path.realpath(output))
    return real.parent / f".{real.name}.alpharl-hub"


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Make sure that the disk of a folder, which need not exist yet, has room.

    Raises:
        ResourceError: it has not.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise ResourceError(
            f"{folder}: {needed_bytes / 1e9:.3g} GB are needed and {free_bytes / 1e9:.3g} GB are "
            "free; make room, or choose another disk with -o or --work-dir"
        )


def publish(result: Path, output: Path, overwrite: bool) -> None:
    """Move a finished folder to its name, swapping out what stood there; durable on return.

    Raises:
        WriteError: the name cannot be taken.
    """
    # What is swapped is the folder itself, not a link to it, nor "." by that name.
    output = Path(os.path.realpath(output))
    old = output.with_name(f".{output.name}.replaced")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(result)
        staged = _on_same_disk(result, output)
        has_old = output.exists()
        if has_old:
            check_output(output, overwrite)
            shutil.rmtree(old, ignore_errors=True)
            os.rename(output, old)
        try:
            os.rename(staged, output)
        except OSError:
            if has_old:
                os.rename(old, output)
            raise
        sync_folder(output.parent)
        # Also an old one that a start left which was killed between the two renames.
        for folder in (result, old):
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise write_error(output, error) from error


def _on_same_disk(result: Path, output: Path) -> Path:
    """Return the finished folder, copied beside the output first when it cannot be moved there.

    That is tried: two mounts of one disk look like one folder tree and are none.
    """
    staged = output.with_name(f".{output.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    probe = result.with_name(f"{result.name}.probe")
    probe.mkdir(exist_ok=True)
    try:
        os.rename(probe, staged)
    except OSError as error:
        probe.rmdir()
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(result, staged)
        _require_copy(result, staged)
        sync_folder(staged)
        return staged
    staged.rmdir()
    return result


def _require_copy(result: Path, staged: Path) -> None:
    """Return when a copied folder is on its disk and was read back.

    Raises:
        WriteError: it holds something else.
    """
    for path in staged.iterdir():
        _sync_file(path)
        if not filecmp.cmp(result / path.name, path, shallow=False):
            raise _damaged(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        drop_cached(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path) -> WriteError:
    return WriteError(
        f"{path}: reads back other than it was written; see to the disk, then start again with the "
        "same arguments"
    )


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, durable on return and read back.

    Raises:
        WriteError: the disk refuses, or gives back something else.
    """
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            drop_cached(file.fileno())
        found = path.read_bytes()
    except OSError as error:
        raise write_error(path, error) from error
    if found != data:
        raise _damaged(path)
