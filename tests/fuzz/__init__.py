"""Readers of strangers' files as functions of bytes, for hypothesis and for atheris.

`python -m tests.fuzz NAME` (with atheris installed) searches for bytes that end a reader with
anything but an answer or one error of ours; what it found once lies in `corpus/NAME` and is read
again by test_hostile_corpus.py.
"""
