"""Which files a report may replace: those that dist_sketch wrote. A mark in the file itself says so."""

import os
import stat
from pathlib import Path

from dist_sketch.core.errors import UserError

PICTURE_MARK = "dist_sketch report --sheet"  # the software in a picture's Exif data
MARKS = (b'<meta name="generator" content="dist_sketch">', PICTURE_MARK.encode())
# How the pages of older versions begin, which had no such mark
OLD_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"""
READ_BYTES = 1000


def refuse_others(file: Path, *companions: Path) -> None:
    """Refuses to replace files of somebody else.

    Args:
        file: bears our mark, if it is ours.
        companions: written together with it, without a mark of their own; if they are there, then so must it be.

    Raises:
        UserError: names the file; or one of them is a link, a device, or a folder.
    """
    ours = False
    for path in (file, *companions):
        if not os.path.lexists(path):
            continue
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UserError(f"{path}: is not a regular file, and is not replaced; choose another name")
        if path == file:
            with open(path, "rb") as source:
                head = source.read(READ_BYTES)
            ours = head.startswith(OLD_PAGE) or any(mark in head for mark in MARKS)
        if not ours:
            raise UserError(
                f"{path}: was not written by this command, and would be lost; choose another name, or move it away"
            )
