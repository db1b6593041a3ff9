"""Scans in, masks out: `files` reads any format and writes atomically, `nifti` and `dicom` know theirs, `convert` takes images in memory, `check` and `peaks` judge what is a CT."""
