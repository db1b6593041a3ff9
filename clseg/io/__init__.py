"""Scans in, masks out: `files` reads any format and writes atomically, `nifti` knows the format, `check` refuses what is not a CT."""
