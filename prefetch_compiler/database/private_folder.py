"""The user's own folder of databases: made for its owner alone, and read only where nobody else can have written.

It is read without having been named, so that whoever can write there chooses kernels for the user. Folders that are
named may be shared: there the user has said so.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import platformdirs

_PRIVATE_MODE, _ANY_MODE = 0o700, 0o777
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_MAY_ENTER = stat.S_IXGRP | stat.S_IXOTH
_ROOT = 0


def user_folder() -> Path:
    """Where the user's own databases are, such as ``~/.cache/kvprefetch/tuning_db``."""
    return Path(platformdirs.user_cache_dir("kvprefetch"), "tuning_db")


def is_users_own(folder: Path) -> bool:
    """Whether it is the user's own folder, by whatever way it is named."""
    return os.path.realpath(folder) == os.path.realpath(user_folder())


def make_folder(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, durably: the user's own with mode 0700, others as the umask says.

    Raises:
        OSError: it cannot be made.
    """
    missing, path = [], folder
    while not path.exists():
        missing.append(path)
        path = path.parent
    private = (folder, folder.parent) if is_users_own(folder) else ()
    for path in reversed(missing):
        path.mkdir(mode=_PRIVATE_MODE if path in private else _ANY_MODE, exist_ok=True)
        sync_folder(path.parent)


def why_untrusted(folder: Path) -> str | None:
    """Why somebody else may have written what is in the user's own ``folder``, or None. It and the folder above it, and
    what they are links to, have to belong to the user (or to root), and be writable by nobody else.

    Raises:
        OSError: it cannot be looked at.
    """
    for path in (folder.parent, folder):
        # A link counts by whose it is: following somebody else's is reading whatever they point at.
        for status in (path.lstat(), path.stat()):
            problem = _problem(status)
            if problem is not None:
                return f"{path} {problem}"
    return None


def why_own_untrusted(folder: Path) -> str | None:
    """:func:`why_untrusted` if ``folder`` is the user's own, by whatever way it is named; None for any other.

    Raises:
        OSError: it cannot be looked at.
    """
    return why_untrusted(user_folder()) if is_users_own(folder) else None


def why_file_untrusted(path: Path) -> str | None:
    """The same for a file in it. What the umask left open in a folder that nobody else can enter is nobody else's.

    Raises:
        OSError: it cannot be looked at.
    """
    status = path.lstat()
    closed = not path.parent.stat().st_mode & _OTHERS_MAY_ENTER
    problem = _problem(status, open_is_fine=closed or stat.S_ISLNK(status.st_mode))
    return None if problem is None else f"{path} {problem}"


def why_link_untrusted(path: Path) -> str | None:
    """Why a link in the place of a file is not to be followed when that file is replaced, or None: what somebody else's
    link points to is the user's, and not theirs to replace.

    Raises:
        OSError: it cannot be looked at.
    """
    if not path.is_symlink():
        return None
    problem = _problem(path.lstat())
    return None if problem is None else f"{path} is a link that {problem}"


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on disk.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot, and need not: their renames are durable by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _problem(status: os.stat_result, open_is_fine: bool = False) -> str | None:
    if status.st_uid not in (os.geteuid(), _ROOT):
        return f"belongs to user {status.st_uid}, and this is user {os.geteuid()}"
    # The mode of a link says nothing.
    if status.st_mode & _OTHERS_MAY_WRITE and not open_is_fine and not stat.S_ISLNK(status.st_mode):
        return f"may be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None
