"""A disk that is full while a campaign is begun: after making room the same command goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns import SMALL_DISK

# A job whose results cannot be brought back is held, and waited for: hence the time limit, and the release.
SCRIPT = r"""
python=$1 disk=$2
submit() {
    timeout "$1" "$python" -m fermigrid submit --site local --image light --name full --run-dir "$disk/run" --wait -- true
}
submit 15; first=$?
mount -o remount,size=8m none "$disk"
if [ "$first" != 0 ]; then
    "$python" -m fermigrid release "$disk/run"
    submit 60 || exit 1
fi
"$python" -m fermigrid status "$disk/run" --check
"""


def begun_on(size_kb: int, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    wrap = [*SMALL_DISK, f"{size_kb}k", str(folder)]
    command = [*wrap, "sh", "-c", SCRIPT, "small-disk", sys.executable, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("size_kb", [96, 128, 160, 224])
def test_a_full_disk_while_beginning_is_overcome(tmp_path: Path, size_kb: int) -> None:
    done = begun_on(size_kb, tmp_path / "disk")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.drill
def test_a_disk_that_is_full_at_any_point(tmp_path: Path) -> None:
    for size_kb in range(16, 640, 16):
        done = begun_on(size_kb, tmp_path / str(size_kb))
        assert done.returncode == 0, f"{size_kb} KiB\n{done.stdout}{done.stderr}"
