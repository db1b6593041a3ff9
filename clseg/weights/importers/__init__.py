"""Importers: weights that others trained → checkpoints of clseg.

pickles    the one place that opens a foreign pickle, and only for plain content
"""
